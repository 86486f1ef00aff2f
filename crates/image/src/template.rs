//! What an image wants written into its containers: the templates of `metadata.yaml`, and the little language they are
//! in (of pongo2, what images use).

use std::collections::BTreeMap;

use lazaret_base::{Context, Result, error};
use serde::{Deserialize, Serialize};

use crate::archive::{Archive, Kind};
use crate::yaml::{self, Value};
use crate::{Limits, stream};

/// What a metadata archive says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// A sentence for people.
    pub description: String,
    /// Seconds since 1970 after which it should not be used any more.
    pub expires: Option<u64>,
    /// Files to write into containers.
    pub templates: Vec<Template>,
    /// What was not understood, a sentence each.
    pub warnings: Vec<String>,
}

/// A file that is written when a container is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// Where, from the container's root.
    pub path: String,
    /// Only where no file is yet.
    pub create_only: bool,
    /// For copies as well.
    pub on_copy: bool,
    /// The text, in the language of templates.
    pub text: String,
    /// What `properties.NAME` stands for in it.
    pub properties: BTreeMap<String, String>,
}

/// What a template may ask about.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The container's name.
    pub name: &'a str,
    /// The kernel's name of the architecture.
    pub architecture: &'a str,
    /// Whether root inside is root outside.
    pub privileged: bool,
}

/// All of a metadata archive, decompressed.
const LARGEST: u64 = 8 << 20;
const MOST_FILES: u64 = 1000;
/// All templates of an image together.
const LARGEST_TEMPLATES: usize = 512 << 10;

/// Reads a metadata archive (`incus.tar.xz`, `lxd.tar.xz`).
///
/// An archive that is none is an error; a template that can't be used is left out and told.
pub fn read_metadata(bytes: &[u8]) -> Result<Metadata> {
    let files = files(bytes).context("reading the image's metadata")?;
    of_files(&files)
}

/// What a unified image (`metadata.yaml`, `templates/`, `rootfs/` in one archive) says; `None` for any other archive.
/// Only what stands before the root is read.
pub(crate) fn metadata_of_unified(reader: impl std::io::Read + Send) -> Result<Option<Metadata>> {
    let limits = Limits::default();
    let files = stream::beginning(reader, &limits, |stream| {
        let mut archive = Archive::new(stream, &limits);
        let (mut files, mut total) = (BTreeMap::new(), 0);
        while let Some(entry) = archive.next()? {
            let path = String::from_utf8_lossy(&entry.path).trim_start_matches("./").trim_end_matches('/').to_owned();
            let ours = path == "metadata.yaml" || path.starts_with("templates/");
            if !(ours || path.is_empty() || path == "templates") {
                break;
            }
            total += archive.left();
            if total > LARGEST {
                return Err(error(format!("the image's metadata have more than {LARGEST} bytes")));
            }
            if entry.kind == Kind::File && entry.sparse.is_none() {
                files.extend(archive.content(u64::MAX)?.map(|content| (path, content)));
            }
        }
        Ok(files)
    })?;
    if files.contains_key("metadata.yaml") { of_files(&files).map(Some) } else { Ok(None) }
}

fn of_files(files: &BTreeMap<String, Vec<u8>>) -> Result<Metadata> {
    let Some(text) = files.get("metadata.yaml") else {
        return Err(error("the image's metadata has no metadata.yaml"));
    };
    let mut metadata = Metadata::default();
    let all = match yaml::parse(&String::from_utf8_lossy(text)) {
        Ok(all) => all,
        Err(e) => {
            metadata
                .warnings
                .push(format!("metadata.yaml of the image is not understood: {e}; its templates are left out"));
            return Ok(metadata);
        }
    };
    let description = all.get("properties").and_then(|all| all.get("description")).and_then(Value::text);
    metadata.description = one_line(description.unwrap_or_default());
    metadata.expires =
        all.get("expiry_date").and_then(Value::text).and_then(|text| text.parse().ok()).filter(|at| *at > 0);
    let mut total = 0;
    for (path, value) in all.get("templates").map_or(&[][..], Value::entries) {
        match template(path, value, files) {
            Ok(None) => {}
            Ok(Some(template)) => {
                total += template.text.len();
                if total > LARGEST_TEMPLATES {
                    return Err(error(format!("the image's templates have more than {LARGEST_TEMPLATES} bytes")));
                }
                metadata.templates.push(template);
            }
            Err(e) => metadata.warnings.push(format!("the image's template of `{}` is left out: {e}", one_line(path))),
        }
    }
    Ok(metadata)
}

/// The regular files of a small archive.
fn files(bytes: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    let limits = Limits { bytes: LARGEST, entries: MOST_FILES, path: 512, ratio: 1000, ratio_floor: LARGEST };
    stream::with(bytes, &limits, |stream| {
        let mut archive = Archive::new(stream, &limits);
        let mut files = BTreeMap::new();
        while let Some(entry) = archive.next()? {
            let path = String::from_utf8_lossy(&entry.path).trim_start_matches("./").to_owned();
            if entry.kind == Kind::File && entry.sparse.is_none() {
                files.extend(archive.content(u64::MAX)?.map(|content| (path, content)));
            }
        }
        Ok(files)
    })
}

fn template(path: &str, value: &Value, files: &BTreeMap<String, Vec<u8>>) -> Result<Option<Template>> {
    let field = |key: &str| value.get(key).and_then(Value::text).unwrap_or_default();
    let when: Vec<_> = value.get("when").map_or(&[][..], Value::items).iter().filter_map(Value::text).collect();
    // Those of each start are written once, too: a container that was set up stays as it is.
    if !when.iter().any(|moment| ["create", "start"].contains(moment)) {
        return Ok(None);
    }
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    if !path.starts_with('/')
        || path.len() > 500
        || path.contains('\0')
        || parts.iter().any(|part| [".", ".."].contains(part))
    {
        return Err(error("its path leads out of the container"));
    }
    let name = field("template");
    let text = files.get(&format!("templates/{name}")).ok_or_else(|| error("its text is missing"))?;
    let text = std::str::from_utf8(text).map_err(|_| error("it is not UTF-8"))?.to_owned();
    let entries = value.get("properties").map_or(&[][..], Value::entries);
    let properties = entries.iter().filter_map(|(key, value)| Some((key.clone(), value.text()?.to_owned())));
    let template = Template {
        path: format!("/{}", parts.join("/")),
        create_only: field("create_only") == "true",
        on_copy: when.contains(&"copy"),
        text,
        properties: properties.collect(),
    };
    // Tried at once: an image whose templates mean nothing to us says so when it comes, not at each container.
    render(&template, &Facts { name: "x", architecture: "x86_64", privileged: false })?;
    Ok(Some(template))
}

pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}

/// The text of a file.
///
/// `{{ container.name }}` and its like are replaced, `{% if … %}…{% else %}…{% endif %}` chooses. What is not known is
/// an error: half a file would be worse than none.
pub fn render(template: &Template, facts: &Facts<'_>) -> Result<String> {
    let mut out = String::new();
    // For each `if` we are in: whether its part is taken, and whether one was.
    let mut conditions: Vec<(bool, bool)> = Vec::new();
    let mut rest = template.text.as_str();
    loop {
        let taken = conditions.iter().all(|(now, _)| *now);
        let next = ["{{", "{%", "{#"].iter().filter_map(|mark| rest.find(mark)).min();
        let Some(at) = next else {
            if taken {
                out.push_str(rest);
            }
            return match conditions.is_empty() {
                true => Ok(out),
                false => Err(error("an `if` has no `endif`")),
            };
        };
        if taken {
            out.push_str(&rest[..at]);
        }
        let (mark, after) = rest[at..].split_at(2);
        let close = ["}}", "%}", "#}"][["{{", "{%", "{#"].iter().position(|known| *known == mark).unwrap_or(0)];
        let end = after.find(close).ok_or_else(|| error(format!("`{mark}` has no `{close}`")))?;
        let inner = after[..end].trim_matches('-').trim();
        rest = &after[end + 2..];
        match mark {
            "{{" if taken => out.push_str(&value_of(inner, template, facts)?),
            "{%" => tag(inner, template, facts, &mut conditions)?,
            _ => {}
        }
    }
}

fn tag(inner: &str, template: &Template, facts: &Facts<'_>, conditions: &mut Vec<(bool, bool)>) -> Result<()> {
    let (word, rest) = inner.split_once(' ').unwrap_or((inner, ""));
    let above = conditions.iter().rev().skip(1).all(|(now, _)| *now);
    let depth = conditions.len();
    match (word, conditions.last_mut()) {
        ("if", _) if depth < 20 => {
            let holds = condition(rest, template, facts)?;
            conditions.push((holds, holds));
        }
        ("elif", Some(last)) => {
            let holds = !last.1 && above && condition(rest, template, facts)?;
            *last = (holds, last.1 || holds);
        }
        ("else", Some(last)) => *last = (!last.1, true),
        ("endif", Some(_)) => drop(conditions.pop()),
        _ => return Err(error(format!("`{{% {} %}}` is not understood", one_line(inner)))),
    }
    Ok(())
}

fn condition(text: &str, template: &Template, facts: &Facts<'_>) -> Result<bool> {
    let text = text.trim();
    for (sign, equal) in [("==", true), ("!=", false)] {
        if let Some((a, b)) = text.split_once(sign) {
            return Ok((value_of(a.trim(), template, facts)? == value_of(b.trim(), template, facts)?) == equal);
        }
    }
    if let Some(rest) = text.strip_prefix("not ") {
        return condition(rest, template, facts).map(|holds| !holds);
    }
    let value = value_of(text, template, facts)?;
    Ok(!value.is_empty() && !value.eq_ignore_ascii_case("false") && value != "0")
}

fn value_of(text: &str, template: &Template, facts: &Facts<'_>) -> Result<String> {
    let unknown = || error(format!("`{}` is not understood", one_line(text)));
    // A filter that guards against HTML means nothing here.
    let text =
        text.split_once('|').filter(|(_, filter)| filter.trim() == "safe").map_or(text, |(value, _)| value.trim());
    if let Some(inner) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        return if inner.contains('"') { Err(unknown()) } else { Ok(inner.to_owned()) };
    }
    if let Some(inner) = text.strip_prefix("config_get(").and_then(|text| text.strip_suffix(')')) {
        // A container of ours has none of these keys, so it is always the default that is given.
        let default = inner.split_once(',').ok_or_else(unknown)?.1.trim();
        return value_of(default, template, facts);
    }
    let (object, field) = text.split_once('.').ok_or_else(unknown)?;
    match (object, field) {
        ("container" | "instance", "name") => Ok(facts.name.to_owned()),
        ("container" | "instance", "architecture") => Ok(facts.architecture.to_owned()),
        ("container" | "instance", "privileged") => Ok(facts.privileged.to_string()),
        ("container" | "instance", "ephemeral") => Ok("false".to_owned()),
        ("instance", "type") => Ok("container".to_owned()),
        ("properties", key) => Ok(template.properties.get(key).cloned().unwrap_or_default()),
        ("config" | "devices", _) => Ok(String::new()),
        _ => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(text: &str) -> Template {
        let properties = BTreeMap::from([("default".to_owned(), "#cloud-config\n{}".to_owned())]);
        Template { path: "/x".into(), create_only: false, on_copy: true, text: text.into(), properties }
    }

    fn check(text: &str, expected: &str) {
        let facts = Facts { name: "web", architecture: "x86_64", privileged: false };
        assert_eq!(render(&of(text), &facts).unwrap_or_else(|e| format!("refused: {e}")), expected, "{text}");
    }

    #[test]
    fn templates_that_images_have_are_filled_in() {
        check("{{ container.name }}\n", "web\n");
        check("127.0.1.1\t{{instance.name}}", "127.0.1.1\tweb");
        check("{{ config_get(\"user.user-data\", properties.default) }}", "#cloud-config\n{}");
        let network = "{% if config_get(\"user.network-config\", \"\") == \"\" %}version: 1{% else %}{{ config_get(\"user.network-config\", \"\") }}{% endif %}!";
        check(network, "version: 1!");
        check(
            "{# a word #}{% if instance.type == \"virtual-machine\" %}vm{% elif container.privileged %}p{% else %}c{% endif %}",
            "c",
        );
        check("{% if not container.privileged %}a{% if properties.none %}b{% else %}c{% endif %}{% endif %}", "ac");
    }

    #[test]
    fn what_is_not_understood_is_refused_as_a_whole() {
        check("{{ system.secret }}", "refused: `system.secret` is not understood");
        check("a{% for x in y %}", "refused: `{% for x in y %}` is not understood");
        check("{% if container.name %}", "refused: an `if` has no `endif`");
        check("{{ open", "refused: `{{` has no `}}`");
        check("{% endif %}", "refused: `{% endif %}` is not understood");
    }

    fn archive(files: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, text) in files {
            let mut header = [0u8; 512];
            header[..name.len()].copy_from_slice(name.as_bytes());
            header[100..107].copy_from_slice(b"0000644");
            header[108..115].copy_from_slice(b"0000000");
            header[116..123].copy_from_slice(b"0000000");
            header[124..135].copy_from_slice(format!("{:011o}", text.len()).as_bytes());
            header[136..147].copy_from_slice(b"00000000000");
            header[156] = b'0';
            header[257..263].copy_from_slice(b"ustar\0");
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            bytes.extend(header);
            bytes.extend(text.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        bytes.extend([0; 1024]);
        bytes
    }

    #[test]
    fn metadata_is_read_and_templates_that_lead_elsewhere_are_left_out() {
        let yaml = "expiry_date: 1900000000\nproperties:\n  description: \"A \\e[31m\"\ntemplates:\n  /etc/hostname:\n    \
                    when: [create]\n    template: hostname.tpl\n  /etc/../../x:\n    when: [create]\n    template: \
                    hostname.tpl\n  /etc/none:\n    when: [create]\n    template: none.tpl\n  /etc/later:\n    when: \
                    [delete]\n    template: hostname.tpl\n";
        let bytes = archive(&[("metadata.yaml", yaml), ("templates/hostname.tpl", "{{ container.name }}")]);
        let metadata = read_metadata(&bytes).unwrap();
        assert_eq!((metadata.expires, metadata.description.as_str()), (Some(1_900_000_000), "A  [31m"));
        assert_eq!(metadata.templates.iter().map(|t| t.path.as_str()).collect::<Vec<_>>(), ["/etc/hostname"]);
        assert_eq!(metadata.warnings.len(), 2, "{:?}", metadata.warnings);
        let strange = read_metadata(&archive(&[("metadata.yaml", "a: &x 1")])).unwrap();
        assert!(strange.warnings[0].contains("line 1"), "{:?}", strange.warnings);
        assert!(read_metadata(&archive(&[("x", "")])).unwrap_err().to_string().contains("no metadata.yaml"));
        assert!(read_metadata(b"no archive").is_err());
    }

    proptest! {
        #[test]
        fn no_template_makes_the_renderer_panic(text in "(\\{\\{|\\}\\}|\\{%|%\\}|if |else|endif|a|\\.|\"| |==|config_get\\(|\\)|,|\\|){0,20}") {
            let _ = render(&of(&text), &Facts { name: "x", architecture: "x86_64", privileged: true });
        }
    }
}
