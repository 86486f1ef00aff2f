//! The JSON of OCI images and of docker's older ones, as far as it matters here. Pure: bytes in, values out.

use std::collections::BTreeMap;

use lazaret_base::{Kind, Result, error};
use serde::Deserialize;

use crate::Digest;
use crate::reference;

/// No document of these is larger (the distribution specification recommends 4 MiB for manifests).
pub(crate) const LARGEST: usize = 4 << 20;

/// Something that is named by its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub kind: String,
    /// Unknown for the layers of docker's archives, which are named by files.
    pub digest: Option<Digest>,
    pub size: Option<u64>,
    /// The file, in an archive of docker's.
    pub file: Option<String>,
}

/// What an image says of itself and of what it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Config {
    pub architecture: String,
    pub title: String,
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub user: Option<String>,
    pub directory: Option<String>,
    pub stop_signal: Option<String>,
    pub diff_ids: Vec<Digest>,
}

/// What stands at a digest or a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Manifest {
    /// One image.
    Image { config: Descriptor, layers: Vec<Descriptor> },
    /// The same for several machines, or several images.
    Index(Vec<Entry>),
}

/// A line of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub descriptor: Descriptor,
    /// `org.opencontainers.image.ref.name`, and containerd's longer one.
    pub names: Vec<String>,
    /// Debian's name of the architecture and the system, if stated.
    pub platform: Option<(String, String)>,
}

/// Media types of both worlds, asked for of a registry.
pub(crate) const MANIFESTS: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: i64,
    #[serde(default)]
    platform: Option<RawPlatform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

#[derive(Deserialize)]
struct RawManifest {
    #[serde(default)]
    config: Option<RawDescriptor>,
    #[serde(default)]
    layers: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    manifests: Option<Vec<RawDescriptor>>,
    #[serde(default, rename = "schemaVersion")]
    version: Option<i64>,
}

fn descriptor(raw: RawDescriptor) -> Result<Descriptor> {
    let digest = raw.digest.parse::<Digest>().map_err(|e| e.context("an image of digests other than SHA-256"))?;
    let size = u64::try_from(raw.size).map_err(|_| error("a size below zero"))?;
    Ok(Descriptor { kind: raw.media_type, digest: Some(digest), size: Some(size), file: None })
}

/// Reads a manifest or an index, of OCI's or docker's.
pub(crate) fn manifest(bytes: &[u8]) -> Result<Manifest> {
    let raw: RawManifest = serde_json::from_slice(bytes).map_err(|e| error(format!("it is no manifest ({e})")))?;
    match raw {
        RawManifest { manifests: Some(entries), layers: None, .. } => {
            entries.into_iter().map(entry).collect::<Result<_>>().map(Manifest::Index)
        }
        RawManifest { config: Some(config), layers: Some(layers), manifests: None, .. } => {
            let layers = layers.into_iter().map(descriptor).collect::<Result<Vec<_>>>()?;
            if let Some(strange) = layers.iter().find(|layer| !is_layer(&layer.kind)) {
                return Err(error(format!("a layer of the kind `{}`", printable(&strange.kind)))
                    .hint("only tar archives, plain or compressed with gzip or zstd, can be unpacked"));
            }
            Ok(Manifest::Image { config: descriptor(config)?, layers })
        }
        RawManifest { version: Some(1), .. } => Err(error("it is an image of docker's first format")
            .hint("push or save it again with a program of this decade")),
        _ => Err(error("it is neither a manifest nor an index")),
    }
}

fn entry(raw: RawDescriptor) -> Result<Entry> {
    let annotations = raw.annotations.as_ref();
    let names = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];
    let names = names.iter().filter_map(|key| annotations?.get(*key).cloned()).collect();
    let debian = |name: &str| reference::architecture(name).unwrap_or(name).to_owned();
    let platform = raw.platform.as_ref().map(|platform| (debian(&platform.architecture), platform.os.clone()));
    Ok(Entry { descriptor: descriptor(raw)?, names, platform })
}

fn is_layer(kind: &str) -> bool {
    let tar = kind.contains(".layer.") || kind.contains(".rootfs.");
    tar && !kind.contains("encrypted") && !kind.contains("squashfs")
}

/// The line that is wanted: by tag if one is given, then for this architecture.
pub(crate) fn choose<'a>(entries: &'a [Entry], tag: Option<&str>, architecture: &str) -> Result<&'a Entry> {
    let called = |entry: &&Entry| {
        tag.is_none_or(|tag| entry.names.iter().any(|name| name == tag || name.ends_with(&format!(":{tag}"))))
    };
    let named: Vec<_> = entries.iter().filter(called).collect();
    if let (Some(tag), true) = (tag, named.is_empty()) {
        let known: Vec<_> = entries.iter().flat_map(|entry| &entry.names).map(|name| printable(name)).collect();
        return Err(error(format!("there is no image `{tag}` in it")).kind(Kind::NotFound).hint(if known.is_empty() {
            "its images have no names; leave the tag out".into()
        } else {
            format!("there is {}", known.join(", "))
        }));
    }
    let fits = |entry: &&&Entry| {
        entry.platform.as_ref().is_none_or(|(own, os)| own == architecture && (os == "linux" || os.is_empty()))
    };
    let fitting: Vec<_> = named.iter().filter(fits).collect();
    match fitting[..] {
        [] => {
            let mut known: Vec<_> = named
                .iter()
                .filter_map(|entry| entry.platform.as_ref())
                .map(|(own, os)| printable(&format!("{os}/{own}")))
                .collect();
            known.sort();
            known.dedup();
            let e = error(format!("it is not there for {architecture}")).kind(Kind::NotFound);
            Err(if known.is_empty() {
                error("it holds no image")
            } else {
                e.hint(format!("there is {}", known.join(", ")))
            })
        }
        [only] => Ok(only),
        // An index for several machines may list variants of one: the first is the one that runs everywhere.
        [first, ..] if tag.is_some() || first.platform.is_some() => Ok(first),
        _ => {
            let known: Vec<_> = fitting.iter().flat_map(|entry| &entry.names).map(|name| printable(name)).collect();
            Err(error("there are several images in it")
                .kind(Kind::Invalid)
                .hint(format!("name one of {}: oci:PATH:TAG", known.join(", "))))
        }
    }
}

/// Reads the configuration of an image.
pub(crate) fn config(bytes: &[u8]) -> Result<Config> {
    #[derive(Deserialize)]
    struct Raw {
        #[serde(default)]
        architecture: String,
        #[serde(default)]
        os: String,
        #[serde(default)]
        config: Option<RawRun>,
        rootfs: RawRootfs,
    }
    #[derive(Deserialize)]
    struct RawRootfs {
        #[serde(default)]
        diff_ids: Option<Vec<String>>,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct RawRun {
        entrypoint: Option<Vec<String>>,
        cmd: Option<Vec<String>>,
        env: Option<Vec<String>>,
        user: Option<String>,
        working_dir: Option<String>,
        stop_signal: Option<String>,
        labels: Option<BTreeMap<String, String>>,
    }
    let raw: Raw =
        serde_json::from_slice(bytes).map_err(|e| error(format!("it is no configuration of an image ({e})")))?;
    if !raw.os.is_empty() && raw.os != "linux" {
        return Err(error(format!("it is an image for {}", printable(&raw.os))).kind(Kind::Invalid));
    }
    let run = raw.config.unwrap_or_default();
    let pairs = run.env.unwrap_or_default();
    let pair = |pair: &String| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    let mut words = run.entrypoint.iter().flatten().chain(run.cmd.iter().flatten()).chain(&pairs);
    if words.any(|word| word.contains('\0')) {
        return Err(error("a NUL byte in what it runs").kind(Kind::Invalid));
    }
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty() && !text.chars().any(char::is_control));
    let labels = run.labels.unwrap_or_default();
    let title = ["org.opencontainers.image.title", "org.opencontainers.image.description"];
    let title = title.iter().find_map(|key| labels.get(*key)).map(|text| crate::template::one_line(text));
    let ids = raw.rootfs.diff_ids.unwrap_or_default();
    Ok(Config {
        architecture: raw.architecture,
        title: title.unwrap_or_default(),
        entrypoint: run.entrypoint.unwrap_or_default(),
        command: run.cmd.unwrap_or_default(),
        environment: pairs.iter().filter_map(pair).collect(),
        user: filled(run.user),
        directory: filled(run.working_dir).filter(|directory| directory.starts_with('/')),
        stop_signal: filled(run.stop_signal),
        diff_ids: ids.iter().map(|id| id.parse()).collect::<Result<_>>()?,
    })
}

/// A line of the `manifest.json` of a docker archive.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DockerImage {
    pub config: String,
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    pub layers: Vec<String>,
}

/// The image of a docker archive that is wanted; by `REPOSITORY:TAG`, or by the tag alone.
pub(crate) fn docker(bytes: &[u8], tag: Option<&str>) -> Result<DockerImage> {
    let images: Vec<DockerImage> =
        serde_json::from_slice(bytes).map_err(|e| error(format!("its manifest.json is not understood ({e})")))?;
    let tags = |image: &DockerImage| image.repo_tags.clone().unwrap_or_default();
    let fits = |image: &&DockerImage| {
        tag.is_none_or(|tag| tags(image).iter().any(|known| known == tag || known.ends_with(&format!(":{tag}"))))
    };
    let fitting: Vec<_> = images.iter().filter(fits).collect();
    let known: Vec<_> = images.iter().flat_map(tags).map(|name| printable(&name)).collect();
    match fitting[..] {
        [only] => Ok(only.clone()),
        [] => Err(error(format!("there is no image `{}` in it", tag.unwrap_or_default()))
            .kind(Kind::NotFound)
            .hint(format!("there is {}", known.join(", ")))),
        _ => Err(error("there are several images in it")
            .kind(Kind::Invalid)
            .hint(format!("name one of {}", known.join(", ")))),
    }
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn digest(n: u8) -> String {
        format!("sha256:{}", format!("{n:02x}").repeat(32))
    }

    fn line(n: u8, arch: &str, name: Option<&str>) -> serde_json::Value {
        let mut line = json!({"mediaType": MANIFESTS[0], "digest": digest(n), "size": 7, "platform": {"architecture": arch, "os": "linux"}});
        if let Some(name) = name {
            line["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        line
    }

    fn pick(lines: &[serde_json::Value], tag: Option<&str>, arch: &str) -> Result<String> {
        let Manifest::Index(entries) = manifest(json!({"manifests": lines}).to_string().as_bytes())? else { panic!() };
        choose(&entries, tag, arch).map(|entry| entry.descriptor.digest.unwrap().hex()[..2].to_owned())
    }

    #[test]
    fn the_image_for_this_machine_is_chosen() {
        let machines = [line(1, "arm64", None), line(2, "amd64", None), line(3, "386", None)];
        assert_eq!(pick(&machines, None, "amd64").unwrap(), "02");
        assert_eq!(pick(&machines, None, "i386").unwrap(), "03");
        let e = pick(&machines, None, "s390x").unwrap_err();
        assert_eq!(e.advice(), Some("there is linux/amd64, linux/arm64, linux/i386"));
        let tags = [line(1, "amd64", Some("a")), line(2, "amd64", Some("x/y:b"))];
        assert_eq!(pick(&tags, Some("b"), "amd64").unwrap(), "02");
        assert!(pick(&tags, Some("c"), "amd64").unwrap_err().advice().unwrap().contains("a, x/y:b"));
        assert!(pick(&[], None, "amd64").is_err());
    }

    #[test]
    fn a_manifest_of_either_world_is_read_and_strange_layers_are_refused() {
        let of = |kind: &str| {
            let part = |n: u8, kind: &str| json!({"mediaType": kind, "digest": digest(n), "size": 5});
            manifest(
                json!({"schemaVersion": 2, "config": part(1, "x"), "layers": [part(2, kind)]}).to_string().as_bytes(),
            )
        };
        for kind in ["application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip"]
        {
            assert!(matches!(of(kind), Ok(Manifest::Image { layers, .. }) if layers.len() == 1), "{kind}");
        }
        assert!(of("application/vnd.oci.image.layer.v1.tar+gzip+encrypted").is_err());
        assert!(of("application/vnd.wasm").is_err());
        assert!(manifest(br#"{"schemaVersion": 1, "fsLayers": []}"#).unwrap_err().to_string().contains("first format"));
        assert!(manifest(b"{}").is_err() && manifest(b"").is_err());
        let sha512 = r#"{"manifests": [{"digest": "sha512:00", "size": 1}]}"#;
        assert!(manifest(sha512.as_bytes()).unwrap_err().to_string().contains("other than SHA-256"));
    }

    #[test]
    fn what_an_image_runs_is_read() {
        let text = json!({"architecture": "amd64", "os": "linux", "config": {
            "Entrypoint": ["/bin/app"], "Cmd": null, "Env": ["PATH=/bin", "A=b=c", "broken"], "User": "1000:50",
            "WorkingDir": "/srv", "StopSignal": "SIGINT", "Labels": {"org.opencontainers.image.title": "An\napp"}},
            "rootfs": {"type": "layers", "diff_ids": [digest(1)]}});
        let config = config(text.to_string().as_bytes()).unwrap();
        assert_eq!((config.entrypoint, config.command), (vec!["/bin/app".to_owned()], vec![]));
        assert_eq!(config.environment, [("PATH".into(), "/bin".into()), ("A".into(), "b=c".into())]);
        assert_eq!((config.user.as_deref(), config.directory.as_deref()), (Some("1000:50"), Some("/srv")));
        assert_eq!((config.stop_signal.as_deref(), config.title.as_str()), (Some("SIGINT"), "An app"));
        assert!(super::config(br#"{"os": "windows", "rootfs": {}}"#).is_err());
        assert!(super::config(br#"{"rootfs": {"diff_ids": ["md5:1"]}}"#).is_err());
    }

    #[test]
    fn docker_archives_are_asked_by_tag() {
        let list = json!([{"Config": "a.json", "RepoTags": ["x:1"], "Layers": ["a/layer.tar"]},
                          {"Config": "b.json", "RepoTags": null, "Layers": []}]);
        let pick = |tag| docker(list.to_string().as_bytes(), tag).map(|image| image.config);
        assert_eq!(pick(Some("x:1")).unwrap(), "a.json");
        assert_eq!(pick(Some("1")).unwrap(), "a.json");
        assert!(pick(None).is_err() && pick(Some("2")).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "[\\[\\]{}\":,a-zA-Z0-9]{0,60}") {
            for bytes in [&bytes[..], text.as_bytes()] {
                let _ = (manifest(bytes), config(bytes), docker(bytes, Some("x")));
            }
        }
    }
}
