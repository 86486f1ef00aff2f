//! Images for others: a tree as an OCI image layout, and as the unified tarball of Incus and LXD.

use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::os::unix::fs::FileExt;

use flate2::write::GzEncoder;
use lazaret_base::{Context, Result, error};
use liblzma::write::XzEncoder;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::pack::{Archive, Manner, Packed, Placeholder};
use crate::unpack::full;
use crate::{Digest, Program, Progress, Stack, elf};

/// What an image says of itself, whatever the format.
#[derive(Clone, Debug, Default)]
pub struct Label {
    /// What it is called.
    pub name: String,
    /// A sentence.
    pub description: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Debian's name of the architecture, if it is known.
    pub architecture: Option<String>,
    /// What it runs, if it is made for one program.
    pub program: Option<Program>,
}

/// How an archive is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// As gzip does it.
    Gzip,
    /// As xz does it.
    Xz,
    /// As zstd does it.
    Zstd,
}

impl Compression {
    /// By the ending of a file's name, if it says.
    pub fn of(path: &std::path::Path) -> Option<Compression> {
        let name = path.file_name()?.to_string_lossy().to_lowercase();
        const ENDINGS: &[(&str, Compression)] = &[
            (".tar", Compression::None),
            (".gz", Compression::Gzip),
            (".tgz", Compression::Gzip),
            (".xz", Compression::Xz),
            (".txz", Compression::Xz),
            (".zst", Compression::Zstd),
        ];
        ENDINGS.iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, compression)| *compression)
    }
}

/// Compresses what is written to it.
pub enum Compressor<W: Write> {
    /// As it is.
    Plain(W),
    /// gzip.
    Gzip(GzEncoder<W>),
    /// xz.
    Xz(XzEncoder<W>),
    /// zstd, with a checksum.
    Zstd(zstd::Encoder<'static, W>),
}

impl<W: Write> Compressor<W> {
    /// Begins.
    pub fn new(compression: Compression, out: W) -> Result<Self> {
        Ok(match compression {
            Compression::None => Compressor::Plain(out),
            Compression::Gzip => Compressor::Gzip(GzEncoder::new(out, flate2::Compression::new(4))),
            Compression::Xz => Compressor::Xz(XzEncoder::new(out, 6)),
            Compression::Zstd => {
                let mut encoder = zstd::Encoder::new(out, 3)?;
                encoder.include_checksum(true)?;
                Compressor::Zstd(encoder)
            }
        })
    }

    /// Ends. What was written to comes back.
    pub fn finish(self) -> Result<W> {
        let finished = match self {
            Compressor::Plain(out) => Ok(out),
            Compressor::Gzip(encoder) => encoder.finish(),
            Compressor::Xz(encoder) => encoder.finish(),
            Compressor::Zstd(encoder) => encoder.finish(),
        };
        finished.map_err(Into::into).map_err(full).context("writing the archive")
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Compressor::Plain(out) => out.write(bytes),
            Compressor::Gzip(encoder) => encoder.write(bytes),
            Compressor::Xz(encoder) => encoder.write(bytes),
            Compressor::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Compressor::Plain(out) => out.flush(),
            Compressor::Gzip(encoder) => encoder.flush(),
            Compressor::Xz(encoder) => encoder.flush(),
            Compressor::Zstd(encoder) => encoder.flush(),
        }
    }
}

/// Counts and digests what passes through.
struct Tee<W> {
    out: W,
    state: Sha256,
    count: u64,
}

impl<W> Tee<W> {
    fn new(out: W) -> Tee<W> {
        Tee { out, state: Sha256::new(), count: 0 }
    }

    fn end(self) -> (W, Digest, u64) {
        (self.out, Digest::from_state(self.state), self.count)
    }
}

impl<W: Write> Write for Tee<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.state.update(&bytes[..n]);
        self.count += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

// --- OCI ---

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Where blobs are in a layout.
const BLOBS: &str = "blobs/sha256";

/// A blob of a layout.
struct Blob {
    digest: Digest,
    size: u64,
}

impl Blob {
    fn path(&self) -> String {
        format!("{BLOBS}/{}", self.digest.hex())
    }

    fn descriptor(&self, media_type: &str) -> serde_json::Value {
        json!({ "mediaType": media_type, "digest": self.digest.to_string(), "size": self.size })
    }
}

/// Writes a tree as an OCI image layout of one layer in a tar archive, with the manifest of `docker save` beside it:
/// `podman load`, `docker load` and `skopeo copy oci-archive:…` take it. The ids of the tree are `shift` too low.
///
/// The file must be empty and able to seek: a layer's size is known only when it is written. A system's own init is
/// what it runs, with the signal that asks systemd to end where that is the init.
pub fn write_oci(
    mut file: &File,
    tree: &Stack,
    shift: i64,
    label: &Label,
    progress: &mut dyn FnMut(Progress),
) -> Result<Packed> {
    let mut outer = Archive::new(file);
    outer.file("oci-layout", label.created, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    outer.directory("blobs", label.created)?;
    outer.directory(BLOBS, label.created)?;
    let begins = file.stream_position()?;
    outer.placeholder()?;
    let (packed, layer, plain) = write_layer(file, tree, shift, progress)?;
    outer.pad(layer.size)?;
    let header = Placeholder { name: &layer.path(), modified: label.created, size: layer.size }.to_bytes()?;
    file.write_all_at(&header, begins).map_err(Into::into).map_err(full).context("writing the archive")?;

    let config = config(tree, label, &plain)?;
    let config = write_blob(&mut outer, label.created, &config)?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": config.descriptor(CONFIG), "layers": [layer.descriptor(LAYER)],
    });
    let manifest = write_blob(&mut outer, label.created, &manifest)?;
    let (repository, tag) = tagged(&label.name);
    let mut described = manifest.descriptor(MANIFEST);
    described["platform"] = json!({ "architecture": architecture(tree, label)?, "os": "linux" });
    described["annotations"] = json!({
        "org.opencontainers.image.ref.name": format!("{repository}:{tag}"),
        "io.containerd.image.name": format!("{repository}:{tag}"),
    });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [described] });
    outer.file("index.json", label.created, &text(&index)?)?;
    let docker = json!([{
        "Config": config.path(), "RepoTags": [format!("{repository}:{tag}")], "Layers": [layer.path()],
    }]);
    outer.file("manifest.json", label.created, &text(&docker)?)?;
    outer.finish()?;
    Ok(packed)
}

/// The layer as a blob, and the digest of its plain bytes.
fn write_layer(
    file: &File,
    tree: &Stack,
    shift: i64,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Packed, Blob, Digest)> {
    let blob = Tee::new(BufWriter::with_capacity(256 << 10, file));
    let compressor = Compressor::new(Compression::Gzip, blob)?;
    let mut archive = Archive::new(Tee::new(compressor));
    let packed = archive.tree(tree, Manner { shift, oci: true, ..Manner::default() }, progress)?;
    let (compressor, plain, _) = archive.finish()?.end();
    let (mut out, digest, size) = compressor.finish()?.end();
    out.flush().map_err(Into::into).map_err(full).context("writing the archive")?;
    Ok((packed, Blob { digest, size }, plain))
}

fn write_blob<W: Write>(outer: &mut Archive<W>, created: u64, value: &impl Serialize) -> Result<Blob> {
    let bytes = text(value)?;
    let blob = Blob { digest: Digest::of(&bytes), size: bytes.len() as u64 };
    outer.file(&blob.path(), created, &bytes)?;
    Ok(blob)
}

fn text(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| error(e.to_string()))
}

/// What the image runs, in the words of the image specification.
fn config(tree: &Stack, label: &Label, plain: &Digest) -> Result<serde_json::Value> {
    const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let mut config = match &label.program {
        Some(program) => {
            let variables = program.environment.iter().map(|(key, value)| format!("{key}={value}"));
            let mut environment: Vec<String> = variables.collect();
            if !environment.iter().any(|variable| variable.starts_with("PATH=")) {
                environment.insert(0, PATH.into());
            }
            json!({
                "Env": environment, "Entrypoint": program.entrypoint, "Cmd": program.command,
                "User": program.user.clone().unwrap_or_default(),
                "WorkingDir": program.directory.clone().unwrap_or_default(),
                "StopSignal": program.stop_signal.clone().unwrap_or_default(),
            })
        }
        None => match init_of(tree)? {
            Init::Systemd => json!({ "Env": [PATH], "Cmd": ["/sbin/init"], "StopSignal": "SIGRTMIN+3" }),
            Init::Other => json!({ "Env": [PATH], "Cmd": ["/sbin/init"] }),
            Init::None => json!({ "Env": [PATH], "Cmd": ["/bin/sh"] }),
        },
    };
    if let Some(values) = config.as_object_mut() {
        values.retain(|_, value| !(value.as_str() == Some("") || value.as_array().is_some_and(Vec::is_empty)));
    }
    let created = date(label.created);
    Ok(json!({
        "created": created, "architecture": architecture(tree, label)?, "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": [plain.to_string()] },
        "history": [{ "created": created, "created_by": "lazaret export", "comment": label.description }],
    }))
}

/// Go's name of the architecture, which for these is Debian's but for 32-bit ones.
fn architecture(tree: &Stack, label: &Label) -> Result<String> {
    let debian = debian_architecture(tree, label);
    Ok(match debian.as_str() {
        "armhf" | "armel" => "arm",
        "i386" => "386",
        "ppc64el" => "ppc64le",
        other => other,
    }
    .to_owned())
}

fn debian_architecture(tree: &Stack, label: &Label) -> String {
    label
        .architecture
        .clone()
        .or_else(|| tree.bottom().and_then(elf::architecture))
        .unwrap_or_else(|| crate::reference::own_architecture().to_owned())
}

enum Init {
    None,
    Systemd,
    Other,
}

/// What an image's init is, by what is there.
fn init_of(tree: &Stack) -> Result<Init> {
    let mut found = Init::None;
    for path in ["sbin/init", "usr/sbin/init", "bin/init", "usr/bin/init"] {
        match tree.link(path)? {
            Some(target) if target.to_string_lossy().ends_with("/systemd") => return Ok(Init::Systemd),
            Some(_) => found = Init::Other,
            None if tree.find(path)?.is_some() => found = Init::Other,
            None => {}
        }
    }
    Ok(found)
}

/// Splits `name:tag`; a name of a registry may hold a colon of its own. Only lower case is a name there.
fn tagged(name: &str) -> (String, String) {
    let (repository, tag) = match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') && !repository.is_empty() => (repository, tag),
        _ => (name, "latest"),
    };
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-/".contains(c) { c.to_ascii_lowercase() } else { '-' };
    let repository: String = repository.chars().map(plain).collect();
    let repository = repository.trim_matches(['.', '-', '_', '/']).to_owned();
    (if repository.is_empty() { "image".into() } else { repository }, tag.to_owned())
}

/// As RFC 3339 has it, in universal time. The algorithm is that of days_from_civil's inverse for the Gregorian
/// calendar, whose eras of 400 years have 146097 days.
fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

// --- Incus and LXD ---

/// The name of a host is written into each container of the image.
const HOSTNAME_TEMPLATE: &str = "{{ container.name }}\n";

/// Writes a tree as a unified tarball: `metadata.yaml`, `templates/` and `rootfs/`. The ids of the tree are `shift`
/// too low.
pub fn write_unified<W: Write>(
    out: W,
    tree: &Stack,
    shift: i64,
    label: &Label,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Packed, W)> {
    let mut archive = Archive::new(out);
    archive.file("metadata.yaml", label.created, metadata(tree, label)?.as_bytes())?;
    archive.directory("templates", label.created)?;
    archive.file("templates/hostname.tpl", label.created, HOSTNAME_TEMPLATE.as_bytes())?;
    let packed = archive.tree(tree, Manner { prefix: "rootfs", shift, oci: false }, progress)?;
    Ok((packed, archive.finish()?))
}

fn metadata(tree: &Stack, label: &Label) -> Result<String> {
    let debian = debian_architecture(tree, label);
    let kernel = match debian.as_str() {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        "armhf" | "armel" => "armv7l",
        "i386" => "i686",
        "ppc64el" => "ppc64le",
        other => other,
    };
    let release = tree
        .read("etc/os-release", 64 << 10)?
        .map_or_else(|| tree.read("usr/lib/os-release", 64 << 10), |r| Ok(Some(r)))?;
    let release = String::from_utf8_lossy(&release.unwrap_or_default()).into_owned();
    let value = |key: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim_matches(['"', '\'']).to_owned())
    };
    let os = value("ID").unwrap_or_else(|| "linux".into());
    let codename = value("VERSION_CODENAME").or_else(|| value("VERSION_ID")).unwrap_or_else(|| "unknown".into());
    let description = match label.description.as_str() {
        "" => value("PRETTY_NAME").unwrap_or_else(|| label.name.clone()),
        said => said.to_owned(),
    };
    // A string of JSON is one of YAML.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    Ok(format!(
        "\
architecture: {kernel}
creation_date: {created}
properties:
  architecture: {debian}
  description: {description}
  name: {name}
  os: {os}
  release: {codename}
templates:
  /etc/hostname:
    when:
      - create
      - copy
    create_only: false
    template: hostname.tpl
    properties: {{}}
",
        kernel = quoted(kernel),
        created = label.created,
        debian = quoted(&debian),
        description = quoted(&description),
        name = quoted(&label.name),
        os = quoted(&os),
        codename = quoted(&codename),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(date(1_795_456_819), "2026-11-23T18:00:19Z");
        assert_eq!(date(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn names_become_names_that_registries_take() {
        let check = |name: &str, repository: &str, tag: &str| {
            assert_eq!(tagged(name), (repository.to_owned(), tag.to_owned()), "{name}");
        };
        check("web", "web", "latest");
        check("My Web:v1", "my-web", "v1");
        check("store.example:5000/web", "store.example-5000/web", "latest");
        check("/srv/images/x.tar", "srv/images/x.tar", "latest");
        check("--", "image", "latest");
    }

    #[test]
    fn the_ending_says_how_a_file_is_compressed() {
        let of = |name: &str| Compression::of(std::path::Path::new(name));
        assert_eq!(of("a.tar.ZST"), Some(Compression::Zstd));
        assert_eq!(of("a.tgz"), Some(Compression::Gzip));
        assert_eq!(of("a.tar"), Some(Compression::None));
        assert_eq!(of("web.img"), None);
    }
}
