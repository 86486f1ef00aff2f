//! Files of the person's own, read as the person: root would follow links where they may not go.

use std::fs::File;
use std::path::{Path, PathBuf};

use lazaret_base::{Context, Result, error, read_bounded};
use lazaret_desktop::Person;
use lazaret_image::Logins;
use lazaret_sys::process::with_file_ids;
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

/// What is in a file that the person may read; `None` if there is no such file.
///
/// # Errors
///
/// Where they may not, it is no regular file, or it has more than `most` bytes.
pub(crate) fn read(person: &Person, path: &Path, most: usize) -> Result<Option<Vec<u8>>> {
    let reading = || format!("reading `{}` as `{}`", path.display(), person.name);
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match with_file_ids(person.uid, person.gid, || openat(CWD, path, flags, Mode::empty())) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(e) => return Err(e).with_context(reading),
    };
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(error("not a regular file")).with_context(reading);
    }
    read_bounded(File::from(file), most).with_context(reading).map(Some)
}

/// The person's logins at registries, where `podman login` and `docker login` put them: in the file that
/// `REGISTRY_AUTH_FILE` names, or else where containers-auth.json(5) says.
///
/// A file that can't be read is told by the error of a registry that wants a login, and by nobody else.
pub fn logins(person: &Person, variable: impl Fn(&str) -> Option<String>) -> Logins {
    let places = match variable("REGISTRY_AUTH_FILE").filter(|file| !file.is_empty()) {
        Some(file) => vec![PathBuf::from(file)],
        None => usual(person),
    };
    let found = places.iter().map(|path| match read(person, path, Logins::LONGEST) {
        Ok(Some(bytes)) => Logins::parse(&path.to_string_lossy(), &bytes),
        Ok(None) => Ok(Logins::default()),
        Err(e) => Err(e),
    });
    found.fold(Logins::default(), |mut logins, found| match found {
        Ok(more) => logins.or(more),
        Err(e) => {
            logins.doubt(e.to_string());
            logins
        }
    })
}

fn usual(person: &Person) -> Vec<PathBuf> {
    let session = match person.uid {
        0 => PathBuf::from("/run/containers/0/auth.json"),
        uid => PathBuf::from(format!("/run/user/{uid}/containers/auth.json")),
    };
    let at_home = [".config/containers/auth.json", ".docker/config.json"];
    let at_home = person.home.iter().flat_map(|home| at_home.map(|file| home.join(file)));
    std::iter::once(session).chain(at_home).collect()
}
