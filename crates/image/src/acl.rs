//! POSIX access control lists: text (acl(5)) as archives hold them, bytes as the kernel takes them
//! (include/uapi/linux/posix_acl_xattr.h).

use lazaret_base::{Result, error};

/// The attributes that hold an access list and the one a directory gives to what is made in it.
pub(crate) const ACCESS: &str = "system.posix_acl_access";
pub(crate) const DEFAULT: &str = "system.posix_acl_default";

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;

/// Whom a line is about; the order is the one the kernel demands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    Owner,
    User(Qualifier),
    OwningGroup,
    Group(Qualifier),
    Mask,
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Qualifier {
    Id(u32),
    /// To be looked up in the tree that the list belongs to, never in the host's.
    Name(Vec<u8>),
}

/// A list whose lines may name users and groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acl(Vec<(Who, u16)>);

/// Finds ids of names.
pub(crate) trait Names {
    fn uid(&self, name: &[u8]) -> Option<u32>;
    fn gid(&self, name: &[u8]) -> Option<u32>;
}

impl Acl {
    /// Reads lines or comma-separated entries, long or short (`user:lisa:rw-`, `u:1000:rw`), with an
    /// optional numeric id behind the permissions, as star writes it.
    pub(crate) fn parse(text: &[u8]) -> Result<Acl> {
        let mut lines = Vec::new();
        for line in text.split(|byte| matches!(byte, b',' | b'\n')) {
            let line = line.split(|byte| *byte == b'#').next().unwrap_or(line).trim_ascii();
            if !line.is_empty() {
                lines.push(parse_line(line)?);
            }
        }
        for (required, what) in [(Who::Owner, "owner"), (Who::OwningGroup, "group"), (Who::Other, "other")] {
            if lines.iter().filter(|(who, _)| *who == required).count() != 1 {
                return Err(error(format!("an access list needs one line for {what}")));
            }
        }
        Ok(Acl(lines))
    }

    /// Reads the kernel's form, in which all is said in numbers.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Acl> {
        let mut lines = Vec::new();
        for (tag, permissions, id) in decode(bytes)? {
            let who = match tag {
                0x01 => Who::Owner,
                0x02 => Who::User(Qualifier::Id(id)),
                0x04 => Who::OwningGroup,
                0x08 => Who::Group(Qualifier::Id(id)),
                0x10 => Who::Mask,
                0x20 => Who::Other,
                _ => return Err(unknown_form()),
            };
            lines.push((who, permissions));
        }
        Ok(Acl(lines))
    }

    /// As lines of text, with numbers.
    pub(crate) fn to_text(&self) -> String {
        let qualified = |word: &str, qualifier: &Qualifier| match qualifier {
            Qualifier::Id(id) => format!("{word}:{id}"),
            Qualifier::Name(name) => format!("{word}:{}", String::from_utf8_lossy(name)),
        };
        let line = |(who, bits): &(Who, u16)| {
            let whom = match who {
                Who::Owner => "user:".to_owned(),
                Who::User(qualifier) => qualified("user", qualifier),
                Who::OwningGroup => "group:".to_owned(),
                Who::Group(qualifier) => qualified("group", qualifier),
                Who::Mask => "mask:".to_owned(),
                Who::Other => "other:".to_owned(),
            };
            let letter = |bit, letter| if bits & bit != 0 { letter } else { '-' };
            format!("{whom}:{}{}{}\n", letter(4, 'r'), letter(2, 'w'), letter(1, 'x'))
        };
        self.0.iter().map(line).collect()
    }

    /// Whether all is said in numbers.
    pub(crate) fn is_numeric(&self) -> bool {
        !self.0.iter().any(|(who, _)| matches!(who, Who::User(Qualifier::Name(_)) | Who::Group(Qualifier::Name(_))))
    }

    /// As the kernel takes it. Lines about unknown names are left out and returned as the second value.
    pub(crate) fn to_bytes(&self, names: &dyn Names) -> (Vec<u8>, Vec<String>) {
        let mut lines = Vec::new();
        let mut unknown = Vec::new();
        for (who, permissions) in &self.0 {
            let known = match who {
                Who::User(Qualifier::Name(name)) => names.uid(name).map(|id| Who::User(Qualifier::Id(id))).ok_or(name),
                Who::Group(Qualifier::Name(name)) => {
                    names.gid(name).map(|id| Who::Group(Qualifier::Id(id))).ok_or(name)
                }
                other => Ok(other.clone()),
            };
            match known {
                Ok(who) => lines.push((who, *permissions)),
                Err(name) => unknown.push(String::from_utf8_lossy(name).into_owned()),
            }
        }
        let named = |who: &Who| matches!(who, Who::User(_) | Who::Group(_));
        if lines.iter().any(|(who, _)| named(who)) && !lines.iter().any(|(who, _)| *who == Who::Mask) {
            let union =
                lines.iter().filter(|(who, _)| named(who) || *who == Who::OwningGroup).fold(0, |all, (_, p)| all | p);
            lines.push((Who::Mask, union));
        }
        lines.sort();
        lines.dedup_by(|a, b| a.0 == b.0);
        (encode(&lines), unknown)
    }
}

fn parse_line(line: &[u8]) -> Result<(Who, u16)> {
    let bad = || error(format!("`{}` is not a line of an access list", String::from_utf8_lossy(line)));
    let mut fields: Vec<&[u8]> = line.split(|byte| *byte == b':').map(<[u8]>::trim_ascii).collect();
    // `mask` and `other` take no name: some write one colon less.
    if fields.len() == 2 && matches!(fields[0], b"mask" | b"m" | b"other" | b"o") {
        fields.insert(1, b"");
    }
    let (tag, name, permissions, id) = match fields[..] {
        [tag, name, permissions] => (tag, name, permissions, None),
        [tag, name, permissions, id] => (tag, name, permissions, number(id)),
        _ => return Err(bad()),
    };
    let qualifier = || id.or_else(|| number(name)).map_or_else(|| Qualifier::Name(name.to_vec()), Qualifier::Id);
    let who = match (tag, name.is_empty()) {
        (b"user" | b"u", true) => Who::Owner,
        (b"user" | b"u", false) => Who::User(qualifier()),
        (b"group" | b"g", true) => Who::OwningGroup,
        (b"group" | b"g", false) => Who::Group(qualifier()),
        (b"mask" | b"m", true) => Who::Mask,
        (b"other" | b"o", true) => Who::Other,
        _ => return Err(bad()),
    };
    let mut bits = 0;
    for byte in permissions {
        bits |= match byte {
            b'r' => 4,
            b'w' => 2,
            b'x' => 1,
            b'-' => 0,
            _ => return Err(bad()),
        };
    }
    Ok((who, bits))
}

fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok().filter(|id| *id != NO_ID)
}

fn encode(lines: &[(Who, u16)]) -> Vec<u8> {
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for (who, permissions) in lines {
        let (tag, id) = match who {
            Who::Owner => (0x01u16, NO_ID),
            Who::User(Qualifier::Id(id)) => (0x02, *id),
            Who::OwningGroup => (0x04, NO_ID),
            Who::Group(Qualifier::Id(id)) => (0x08, *id),
            Who::Mask => (0x10, NO_ID),
            Who::Other => (0x20, NO_ID),
            // Looked up or left out before.
            Who::User(Qualifier::Name(_)) | Who::Group(Qualifier::Name(_)) => continue,
        };
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn unknown_form() -> lazaret_base::Error {
    error("an access list of an unknown form")
}

/// The tag, permissions and id of each line.
fn decode(bytes: &[u8]) -> Result<Vec<(u16, u16, u32)>> {
    let (version, lines) = bytes.split_first_chunk::<4>().ok_or_else(unknown_form)?;
    if u32::from_le_bytes(*version) != VERSION || lines.len() % 8 != 0 {
        return Err(unknown_form());
    }
    let short = |line: &[u8], at| u16::from_le_bytes([line[at], line[at + 1]]);
    let id = |line: &[u8]| u32::from_le_bytes([line[4], line[5], line[6], line[7]]);
    Ok(lines.chunks_exact(8).map(|line| (short(line, 0), short(line, 2), id(line))).collect())
}

/// Adds `shift` to every id of a list in the kernel's form.
pub(crate) fn shift(bytes: &[u8], shift: i64) -> Result<Vec<u8>> {
    let mut shifted = VERSION.to_le_bytes().to_vec();
    for (tag, permissions, id) in decode(bytes)? {
        let id = if matches!(tag, 0x02 | 0x08) { crate::shift::shifted(id, shift)? } else { id };
        shifted.extend(tag.to_le_bytes());
        shifted.extend(permissions.to_le_bytes());
        shifted.extend(id.to_le_bytes());
    }
    Ok(shifted)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Tree;
    impl Names for Tree {
        fn uid(&self, name: &[u8]) -> Option<u32> {
            (name == b"lisa").then_some(1001)
        }
        fn gid(&self, name: &[u8]) -> Option<u32> {
            (name == b"adm").then_some(4)
        }
    }

    fn check(text: &str, expected: &[(u16, u16, u32)]) {
        let (bytes, _) = Acl::parse(text.as_bytes()).unwrap().to_bytes(&Tree);
        assert_eq!(decode(&bytes).unwrap(), expected, "{text}");
        let acl = Acl::from_bytes(&bytes).unwrap();
        assert_eq!(acl.to_bytes(&Tree).0, bytes);
        assert_eq!(Acl::parse(acl.to_text().as_bytes()).unwrap(), acl);
    }

    #[test]
    fn every_way_of_writing_a_list_is_read() {
        let expected = [(1, 6, NO_ID), (2, 4, 1001), (4, 4, NO_ID), (8, 5, 4), (16, 5, NO_ID), (32, 0, NO_ID)];
        check("user::rw-\nuser:lisa:r--\ngroup::r--\ngroup:adm:r-x\nmask::r-x\nother::---\n", &expected);
        check("u::rw,g::r,o:-,m:rx,u:1001:r,g:4:rx", &expected);
        check("user::rw-,user:lizzy:r--:1001,group::r--,group:x:r-x:4,mask:r-x,other:---", &expected);
        check("user::rw- # the owner\nuser:lisa:r--\t#effective:r--\ngroup::r--\ngroup:adm:r-x\nother::---", &expected);
    }

    #[test]
    fn an_unknown_name_is_left_out_and_told() {
        let acl = Acl::parse(b"u::rwx,u:nobody-knows:rwx,g::r,o::r").unwrap();
        assert!(!acl.is_numeric());
        let (bytes, unknown) = acl.to_bytes(&Tree);
        assert_eq!((bytes.len(), unknown), (4 + 3 * 8, vec!["nobody-knows".to_owned()]));
    }

    #[test]
    fn half_lists_and_nonsense_are_refused() {
        for bad in [
            "",
            "u::rwx",
            "u::rwx,g::r",
            "u::q,g::r,o::r",
            "x::r,u::r,g::r,o::r",
            "u::r,u::r,g::r,o::r",
            "u",
            "mask:a:r",
        ] {
            assert!(Acl::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
