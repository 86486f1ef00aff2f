//! What a program says of the libraries it needs (elf(5)), read from a file that is a stranger's: nothing of it is
//! believed before it is looked at, and little of it is read.

/// Reads so many bytes from there on, all of them or none.
pub(super) type ReadAt<'a> = dyn Fn(u64, usize) -> Option<Vec<u8>> + 'a;

/// What is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Object {
    /// Class, byte order and machine: only alike objects are loaded together.
    pub(super) kind: (u8, u8, u16),
    /// The program that loads it, if it is loaded by one.
    pub(super) interpreter: Option<String>,
    /// The libraries it needs.
    pub(super) needed: Vec<String>,
    /// Where they are, the old way (`DT_RPATH`): for what those libraries need, too.
    pub(super) rpath: Vec<String>,
    /// Where they are, the new way (`DT_RUNPATH`).
    pub(super) runpath: Vec<String>,
}

/// More segments no program has.
const MOST_SEGMENTS: usize = 512;
/// More entries no dynamic section has.
const MOST_ENTRIES: usize = 4096;
/// Libraries, and directories of one path.
const MOST_NAMES: usize = 512;
/// A name, or a path.
const LONGEST: usize = 4096;

const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_STRSZ: u64 = 10;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// Numbers as the file has them.
#[derive(Clone, Copy)]
struct Form {
    wide: bool,
    big: bool,
}

impl Form {
    fn number(self, bytes: &[u8], at: usize, size: usize) -> Option<u64> {
        let bytes = bytes.get(at..at.checked_add(size)?)?;
        let join = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(if self.big { bytes.iter().fold(0, join) } else { bytes.iter().rev().fold(0, join) })
    }

    /// An address or a length.
    fn word(self, bytes: &[u8], narrow: usize, wide: usize) -> Option<u64> {
        if self.wide { self.number(bytes, wide, 8) } else { self.number(bytes, narrow, 4) }
    }
}

/// A part of the file that is loaded, or that says something.
struct Segment {
    kind: u64,
    offset: u64,
    address: u64,
    length: u64,
}

/// Reads an object. `None` for what is no ELF file, or a broken one.
pub(super) fn parse(read: &ReadAt<'_>) -> Option<Object> {
    let ident = read(0, 52)?;
    if ident.get(..4)? != b"\x7fELF" || !matches!((ident[4], ident[5]), (1 | 2, 1 | 2)) {
        return None;
    }
    let form = Form { wide: ident[4] == 2, big: ident[5] == 2 };
    let head = if form.wide { read(0, 64)? } else { ident };
    let kind = (head[4], head[5], form.number(&head, 18, 2)? as u16);
    let segments = segments(read, form, &head)?;
    let text = |segment: &Segment| string(read, segment.offset, segment.length);
    let interpreter = segments.iter().find(|segment| segment.kind == PT_INTERP).and_then(text);
    let mut object = Object { kind, interpreter, ..Object::default() };
    let Some(dynamic) = segments.iter().find(|segment| segment.kind == PT_DYNAMIC) else { return Some(object) };

    let size = if form.wide { 16 } else { 8 };
    let length = (dynamic.length as usize).min(MOST_ENTRIES * size) / size * size;
    let bytes = read(dynamic.offset, length)?;
    let entries: Vec<(u64, u64)> = bytes
        .chunks_exact(size)
        .filter_map(|entry| Some((form.word(entry, 0, 0)?, form.word(entry, 4, 8)?)))
        .take_while(|(tag, _)| *tag != 0)
        .collect();
    let value = |wanted: u64| entries.iter().find(|(tag, _)| *tag == wanted).map(|(_, value)| *value);
    let (Some(table), Some(size)) = (value(DT_STRTAB), value(DT_STRSZ)) else { return Some(object) };
    let table = offset_of(&segments, table)?;
    let text = |at: u64| string(read, table.checked_add(at)?, size.checked_sub(at)?);
    let paths = |wanted: u64| -> Vec<String> {
        let path = value(wanted).and_then(text).unwrap_or_default();
        path.split(':').filter(|dir| !dir.is_empty()).take(MOST_NAMES).map(str::to_owned).collect()
    };
    let needed = entries.iter().filter(|(tag, _)| *tag == DT_NEEDED).take(MOST_NAMES);
    object.needed = needed.filter_map(|(_, at)| text(*at)).filter(|name| !name.is_empty()).collect();
    (object.rpath, object.runpath) = (paths(DT_RPATH), paths(DT_RUNPATH));
    Some(object)
}

fn segments(read: &ReadAt<'_>, form: Form, head: &[u8]) -> Option<Vec<Segment>> {
    let at = form.word(head, 28, 32)?;
    let (sizes, least) = if form.wide { (54, 56) } else { (42, 32) };
    let (size, count) = (form.number(head, sizes, 2)? as usize, form.number(head, sizes + 2, 2)? as usize);
    if size < least || count > MOST_SEGMENTS {
        return None;
    }
    let table = read(at, size * count)?;
    let segment = |bytes: &[u8]| {
        Some(Segment {
            kind: form.number(bytes, 0, 4)?,
            offset: form.word(bytes, 4, 8)?,
            address: form.word(bytes, 8, 16)?,
            length: form.word(bytes, 16, 32)?,
        })
    };
    table.chunks_exact(size).map(segment).collect()
}

/// Where in the file an address of the loaded program is.
fn offset_of(segments: &[Segment], address: u64) -> Option<u64> {
    let loaded = segments.iter().filter(|segment| segment.kind == PT_LOAD);
    let mut places = loaded.filter_map(|segment| {
        let into = address.checked_sub(segment.address).filter(|into| *into < segment.length)?;
        segment.offset.checked_add(into)
    });
    places.next()
}

/// A text that ends with a zero, at most so long.
fn string(read: &ReadAt<'_>, at: u64, most: u64) -> Option<String> {
    let most = most.min(LONGEST as u64) as usize;
    // Near the end of the file there may be less.
    let bytes =
        [most, 256, 64, 16, 1].into_iter().filter(|length| *length <= most).find_map(|length| read(at, length))?;
    let end = bytes.iter().position(|byte| *byte == 0)?;
    String::from_utf8(bytes[..end].to_vec()).ok().filter(|text| !text.chars().any(char::is_control))
}

/// Libraries by name in glibc's cache of them (`/etc/ld.so.cache`, elf/cache.h), as paths. Empty for another file.
pub(super) fn cache(bytes: &[u8]) -> Vec<(String, String)> {
    const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
    const HEAD: usize = 48;
    const ENTRY: usize = 24;
    let Some(head) = bytes.get(..HEAD).filter(|head| head.starts_with(MAGIC)) else { return Vec::new() };
    let little = Form { wide: false, big: false };
    let count = little.number(head, 20, 4).unwrap_or(0) as usize;
    let text = |at: u64| {
        let rest = bytes.get(at as usize..)?;
        let end = rest.iter().take(LONGEST).position(|byte| *byte == 0)?;
        std::str::from_utf8(&rest[..end]).ok().map(str::to_owned)
    };
    let entries = bytes[HEAD..].chunks_exact(ENTRY).take(count);
    entries.filter_map(|entry| Some((text(little.number(entry, 4, 4)?)?, text(little.number(entry, 8, 4)?)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Option<Object> {
        parse(&|at, length| {
            let at = usize::try_from(at).ok()?;
            bytes.get(at..at.checked_add(length)?).map(<[u8]>::to_vec)
        })
    }

    /// A program of 64 bits that needs two libraries.
    fn program() -> Vec<u8> {
        let strings = b"\0libone.so.1\0libtwo.so\0$ORIGIN/lib:/opt\0/lib/loader\0";
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0\x01\0\0\0".to_vec();
        let word = |file: &mut Vec<u8>, number: u64| file.extend(number.to_le_bytes());
        word(&mut file, 0);
        word(&mut file, 64);
        word(&mut file, 0);
        file.extend([0, 0, 0, 0, 64, 0, 56, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        let (strings_at, dynamic_at) = (512, 1024);
        let segment = |file: &mut Vec<u8>, kind: u32, offset: u64, address: u64, length: u64| {
            file.extend(kind.to_le_bytes());
            file.extend([0; 4]);
            for number in [offset, address, address, length, length, 8] {
                file.extend(number.to_le_bytes());
            }
        };
        segment(&mut file, 1, 0, 0x40_0000, 4096);
        segment(&mut file, 2, dynamic_at, 0x40_0000 + dynamic_at, 96);
        let loader = strings.iter().rposition(|b| *b == b'l').map_or(0, |at| at as u64) - 5;
        segment(&mut file, 3, strings_at + loader, 0x40_0000, 12);
        file.resize(strings_at as usize, 0);
        file.extend(strings);
        file.resize(dynamic_at as usize, 0);
        for (tag, value) in [(1, 1), (1, 13), (29, 23), (5, 0x40_0000 + strings_at), (10, strings.len() as u64), (0, 0)]
        {
            word(&mut file, tag);
            word(&mut file, value);
        }
        file
    }

    #[test]
    fn a_program_says_what_it_needs() {
        let object = of(&program()).unwrap();
        assert_eq!(object.needed, ["libone.so.1", "libtwo.so"]);
        assert_eq!(object.runpath, ["$ORIGIN/lib", "/opt"]);
        assert_eq!((object.kind, object.interpreter.as_deref()), ((2, 1, 62), Some("/lib/loader")));
        assert_eq!(of(b"#!/bin/sh"), None);
        // This very program is one, too.
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert!(of(&own).unwrap().needed.iter().any(|name| name.starts_with("libc.")));
    }

    #[test]
    fn the_cache_has_names_and_paths() {
        let mut file = b"glibc-ld.so.cache1.1\x01\0\0\0\x20\0\0\0".to_vec();
        file.resize(48, 0);
        file.extend([3, 0, 0, 0, 72, 0, 0, 0, 77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        file.extend(b"a.so\0/lib/a.so\0");
        assert_eq!(cache(&file), [("a.so".to_owned(), "/lib/a.so".to_owned())]);
        assert!(cache(b"ld.so-1.7.0").is_empty());
    }

    proptest::proptest! {
        #[test]
        fn no_file_makes_us_panic(bytes: Vec<u8>, at in 0usize..1120, byte: u8) {
            let _ = cache(&[&b"glibc-ld.so.cache1.1"[..], &bytes].concat());
            let _ = of(&[&b"\x7fELF\x02\x01"[..], &bytes].concat());
            let mut file = program();
            file[at] = byte;
            let _ = of(&file);
        }
    }
}
