//! Images of a registry, by the distribution specification: anonymous, with the token that a registry hands to anybody
//! who asks, or with the person's login.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use lazaret_base::{Context, Kind, Lock, Result, error};
use serde::Deserialize;

use super::spec::{self, Descriptor, MANIFESTS, Manifest};
use super::{Logins, Parts};
use crate::fetch::{Answer, Asked, Client, Download, Network, download, forget};
use crate::named::Origin;
use crate::reference::Repository;
use crate::remote::{Remote, Remotes};
use crate::{Digest, Progress, Pulled, Stage, Store, own_architecture};

/// What hands out tokens says no more than that.
const LARGEST_TOKEN: usize = 256 << 10;

impl Store {
    /// Gets an image of a registry, unless it is here already. Its name is `docker://HOST/PATH:TAG`.
    pub fn pull_repository(
        &self,
        network: &Network,
        remotes: &Remotes,
        repository: &Repository,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Pulled> {
        let name = format!("docker://{repository}");
        self.pull_named(network, remotes, repository, &name, progress).with_context(|| format!("pulling `{name}`"))
    }

    /// What a registry calls the image now, as it would be this one's build.
    pub fn repository_serial(&self, network: &Network, remotes: &Remotes, repository: &Repository) -> Result<String> {
        let registry = Registry::new(network, &remotes.of_host(&repository.host), repository)?;
        Ok(registry.parts()?.fingerprint.hex()[..12].to_owned())
    }

    fn pull_named(
        &self,
        network: &Network,
        remotes: &Remotes,
        repository: &Repository,
        name: &str,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Pulled> {
        self.one_pull_at_a_time(&Digest::of(name.as_bytes()), progress, |progress| {
            self.pull_locked_repository(network, remotes, repository, name, progress)
        })
    }

    fn pull_locked_repository(
        &self,
        network: &Network,
        remotes: &Remotes,
        repository: &Repository,
        name: &str,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Pulled> {
        let registry = Registry::new(network, &remotes.of_host(&repository.host), repository)?;
        let parts = registry.parts()?;
        let fingerprint = parts.fingerprint.hex();
        if let Some(image) = self.image(name)?
            && image.origin.as_ref().and_then(|origin| origin.fingerprint.as_ref()) == Some(&fingerprint)
        {
            return Ok(Pulled { image, new: false, notes: Vec::new() });
        }
        let layer = self.fetch_layers(&registry, &parts, name, progress)?;
        let notes = layer.warnings.clone();
        let mut image = parts.image(layer);
        image.name = name.to_owned();
        image.origin = Some(Origin {
            reference: name.to_owned(),
            fingerprint: Some(fingerprint),
            pinned: repository.digest.is_some(),
            ..Origin::default()
        });
        self.name_image(&image)?;
        Ok(Pulled { image, new: true, notes })
    }

    fn fetch_layers(
        &self,
        registry: &Registry,
        parts: &Parts,
        source: &str,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<crate::Layer> {
        if let Some(layer) = self.stacked(parts)? {
            return Ok(layer);
        }
        let mut wanted: BTreeMap<Digest, &Descriptor> = BTreeMap::new();
        for layer in &parts.layers {
            wanted.insert(layer.digest.ok_or_else(|| error("a layer without a digest"))?, layer);
        }
        // In the order of their digests, as for everybody who wants several: so nobody waits in a circle.
        let mut locks = Vec::new();
        for digest in wanted.keys() {
            let path = self.part("locks")?.join(format!("pull-{}", digest.hex()));
            locks.push((Lock::wait(&path)?, path));
        }
        let dir = self.part("downloads")?;
        let total = wanted.values().filter_map(|layer| layer.size).fold(0, u64::saturating_add);
        let (mut files, mut before): (BTreeMap<Digest, File>, u64) = (BTreeMap::new(), 0);
        for (digest, layer) in &wanted {
            let size = layer.size.unwrap_or(0);
            // Asked anew for each: a token may be good for a few minutes only.
            let asked = registry.asked(&[])?;
            let download_of = Download {
                places: vec![registry.url(&format!("blobs/{digest}"))],
                digest: *digest,
                size,
                asked: &asked,
            };
            let mut told = |read| {
                progress(Progress { stage: Stage::Fetching { total }, read: before + read, ..Progress::default() });
            };
            files.insert(*digest, download(&registry.client, &download_of, &dir, &mut told)?);
            before += size;
        }
        let open = |layer: &Descriptor| -> Result<Box<dyn Read + Send>> {
            let file =
                layer.digest.and_then(|digest| files.get(&digest)).ok_or_else(|| error("a layer was not fetched"))?;
            let file = file.try_clone()?;
            rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
            Ok(Box::new(file))
        };
        let layer = self.stack(parts, source, progress, open);
        // What is damaged stays so; what failed for want of space is gone on with.
        if layer.as_ref().map_or_else(|e| e.errno().is_none(), |_| true) {
            wanted.keys().for_each(|digest| forget(&dir, digest));
        }
        for (lock, path) in locks {
            let _ = std::fs::remove_file(&path);
            drop(lock);
        }
        layer
    }
}

/// A repository that is asked.
struct Registry {
    client: Client,
    base: String,
    repository: Repository,
    logins: Logins,
}

impl Registry {
    fn new(network: &Network, remote: &Remote, repository: &Repository) -> Result<Registry> {
        let client = Client::new(network, remote.ca.as_deref(), remote.insecure)?;
        let scheme = if remote.url.starts_with("http://") { "http" } else { "https" };
        let (base, logins) = (format!("{scheme}://{}", repository.host), network.logins.clone());
        Ok(Registry { client, base, repository: repository.clone(), logins })
    }

    fn url(&self, rest: &str) -> String {
        format!("{}/v2/{}/{rest}", self.base, self.repository.path)
    }

    /// What a request must say, with a token if the registry wants one.
    fn asked(&self, accept: &[&str]) -> Result<Asked> {
        let mut asked = Asked::default();
        if !accept.is_empty() {
            asked.accept = Some(accept.join(", "));
        }
        let response = self.client.get(&format!("{}/v2/", self.base), &Asked::default(), None)?;
        if response.status().as_u16() != 401 {
            return Ok(asked);
        }
        let challenges = response.headers().get_all("www-authenticate");
        let challenges: Vec<&str> = challenges.iter().filter_map(|value| value.to_str().ok()).collect();
        asked.authorization = Some(match challenges.iter().find_map(|challenge| Challenge::parse(challenge)) {
            Some(challenge) => format!("Bearer {}", self.token(&challenge)?),
            None => {
                let wants = || error(format!("the registry `{}` wants a login", self.repository.host));
                format!("Basic {}", self.login().ok_or_else(wants).hint(self.how_to_log_in())?)
            }
        });
        Ok(asked)
    }

    /// The person's login here, if they have one. It is not said where others can hear it.
    fn login(&self) -> Option<&str> {
        let login = self.logins.of(&self.repository.host, &self.repository.path)?;
        self.base.starts_with("https://").then_some(login)
    }

    fn how_to_log_in(&self) -> String {
        let host = &self.repository.host;
        match (self.logins.of(host, &self.repository.path), self.logins.doubts()) {
            (Some(_), _) if self.login().is_none() => "a login is said to servers of https alone".to_owned(),
            (Some(_), _) => format!("the login that is known for it may be wrong: podman login {host}"),
            (None, []) => format!("log in, with podman or docker: podman login {host}"),
            (None, doubts) => doubts.join("; "),
        }
    }

    fn token(&self, challenge: &Challenge) -> Result<String> {
        #[derive(Deserialize)]
        struct Answered {
            token: Option<String>,
            access_token: Option<String>,
        }
        let scope = format!("repository:{}:pull", self.repository.path);
        let mut query = format!("scope={}", escaped(&scope));
        if let Some(service) = &challenge.service {
            query.push_str(&format!("&service={}", escaped(service)));
        }
        let separator = if challenge.realm.contains('?') { '&' } else { '?' };
        let place = format!("{}{separator}{query}", challenge.realm);
        let secret = challenge.realm.starts_with("https://");
        let authorization = self.login().filter(|_| secret).map(|login| format!("Basic {login}"));
        let asked = Asked { authorization, ..Asked::default() };
        let answer = self.client.small(&[place], LARGEST_TOKEN, &asked).hint(self.how_to_log_in())?;
        let Answer::Fresh { bytes, .. } = answer else { return Err(error("the registry gives no token")) };
        let answered: Answered =
            serde_json::from_slice(&bytes).map_err(|_| error("the registry's answer is no token"))?;
        let token = answered.token.or(answered.access_token).unwrap_or_default();
        match !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(token),
            false => Err(error("the registry's answer is no token")),
        }
    }

    fn document(&self, rest: &str, digest: Option<&Digest>, accept: &[&str]) -> Result<Vec<u8>> {
        let asked = self.asked(accept)?;
        let answer = self.client.small(&[self.url(rest)], spec::LARGEST, &asked);
        let answer = answer.map_err(|e| match e.what() {
            Kind::NotFound => e.hint("is the repository's name right, and the tag? a private one looks the same"),
            Kind::Denied => e.hint(self.how_to_log_in()),
            _ => e,
        })?;
        let Answer::Fresh { bytes, .. } = answer else { return Err(error("the registry gives no document")) };
        match digest {
            Some(digest) if Digest::of(&bytes) != *digest => {
                Err(error(format!("the SHA-256 of `{rest}` is {}", Digest::of(&bytes).hex())))
            }
            _ => Ok(bytes),
        }
    }

    fn parts(&self) -> Result<Parts> {
        let repository = &self.repository;
        let mut digest = repository.digest;
        let mut bytes = match &digest {
            Some(digest) => self.document(&format!("manifests/{digest}"), Some(digest), MANIFESTS)?,
            None => self.document(&format!("manifests/{}", repository.tag), None, MANIFESTS)?,
        };
        if let Manifest::Index(entries) = spec::manifest(&bytes)? {
            let chosen = spec::choose(&entries, None, own_architecture())?.descriptor.digest;
            let chosen = chosen.ok_or_else(|| error("a manifest without a digest"))?;
            bytes = self.document(&format!("manifests/{chosen}"), Some(&chosen), MANIFESTS)?;
            digest = Some(chosen);
        }
        let fingerprint = digest.unwrap_or_else(|| Digest::of(&bytes));
        let Manifest::Image { config, layers } = spec::manifest(&bytes)? else {
            return Err(error("its index leads to an index"));
        };
        let digest = config.digest.ok_or_else(|| error("a configuration without a digest"))?;
        let config = spec::config(&self.document(&format!("blobs/{digest}"), Some(&digest), &[])?)?;
        Ok(Parts { config, layers, name: None, fingerprint })
    }
}

/// `Bearer realm="…",service="…",scope="…"` (RFC 6750, section 3).
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    realm: String,
    service: Option<String>,
}

impl Challenge {
    fn parse(header: &str) -> Option<Challenge> {
        let (scheme, mut rest) = header.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut fields = BTreeMap::new();
        while let Some((key, after)) = rest.trim_start_matches([',', ' ']).split_once('=') {
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_at(after.find(',').unwrap_or(after.len())),
            };
            fields.insert(key.trim().to_ascii_lowercase(), value.to_owned());
            rest = after;
        }
        let realm =
            fields.remove("realm").filter(|realm| realm.starts_with("https://") || realm.starts_with("http://"))?;
        Some(Challenge { realm, service: fields.remove("service") })
    }
}

/// A value of a query (RFC 3986, section 2.1).
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_challenge_says_where_tokens_are() {
        let parsed = Challenge::parse(r#"Bearer realm="https://auth.example/token",service="r.example",scope="a:b,c""#);
        let expected = Challenge { realm: "https://auth.example/token".into(), service: Some("r.example".into()) };
        assert_eq!(parsed, Some(expected));
        for bad in ["Basic realm=\"x\"", "Bearer", "Bearer realm=\"ftp://x\"", "Bearer realm=\"https://x"] {
            assert_eq!(Challenge::parse(bad), None, "{bad}");
        }
        assert_eq!(escaped("repository:a/b:pull"), "repository%3Aa%2Fb%3Apull");
    }

    proptest! {
        #[test]
        fn any_challenge_is_parsed_or_refused(text in "(Bearer |)[a-z=\", :/]{0,60}") {
            let _ = Challenge::parse(&text);
        }
    }
}
