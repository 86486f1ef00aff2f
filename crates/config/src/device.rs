//! Devices of the host that a container may use.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use lazaret_base::Error;

use crate::suggest::did_you_mean;
use crate::text::{invalid, printable, quoted};

/// Devices that a container may use, by what they are rather than by number: `camera`, `usb:046d:0825`,
/// `/dev/ttyUSB0:ro`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Device {
    /// Which.
    pub which: Which,
    /// They may be opened for reading alone.
    pub read_only: bool,
    /// One that opens the host wide is meant.
    pub confirmed: bool,
}

/// Which devices are meant. All that match are, now and later.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Which {
    /// Cameras and other sources of video.
    Camera,
    /// What renders without a screen.
    Gpu,
    /// Gamepads and joysticks.
    Gamepad,
    /// Serial ports behind USB or Bluetooth.
    Serial,
    /// All that one USB device is.
    Usb {
        /// Who made it.
        vendor: u16,
        /// What it is.
        product: u16,
        /// This one of several alike.
        serial: Option<String>,
    },
    /// The node at this path, whatever it is by then.
    Node(PathBuf),
}

/// The classes, as they are written.
pub(crate) const CLASSES: [&str; 4] = ["camera", "gpu", "gamepad", "serial"];

impl FromStr for Which {
    type Err = Error;

    fn from_str(text: &str) -> Result<Which, Error> {
        Ok(match text {
            "camera" => Which::Camera,
            "gpu" => Which::Gpu,
            "gamepad" => Which::Gamepad,
            "serial" => Which::Serial,
            _ if text.starts_with("usb:") => usb(text)?,
            _ if text.starts_with('/') => node(text)?,
            _ => {
                let known = CLASSES.join(", ");
                let hint = || format!("write one of {known}, usb:VENDOR:PRODUCT as lsusb shows them, or /dev/NODE");
                return Err(invalid(format!("unknown device {}", quoted(text)), did_you_mean(text, CLASSES, hint)));
            }
        })
    }
}

fn usb(text: &str) -> Result<Which, Error> {
    let mut parts = text.splitn(4, ':').skip(1);
    let mut id = || {
        let digits =
            parts.next().filter(|digits| digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
        u16::from_str_radix(digits, 16).ok()
    };
    let (vendor, product) = (id(), id());
    let serial = parts.next().map(String::from);
    match (vendor, product) {
        (Some(vendor), Some(product)) if serial.as_ref().is_none_or(|s| !s.is_empty() && printable(s)) => {
            Ok(Which::Usb { vendor, product, serial })
        }
        _ => Err(invalid(
            format!("{} is not the id of a USB device", quoted(text)),
            "write the two numbers that lsusb shows, for example usb:046d:0825, and a serial number behind if there are several",
        )),
    }
}

fn node(text: &str) -> Result<Which, Error> {
    let path = Path::new(text);
    let plain = path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    let name = path.strip_prefix("/dev").ok().filter(|name| !name.as_os_str().is_empty());
    match name {
        Some(_) if plain && printable(text) && text.len() < 256 => Ok(Which::Node(path.components().collect())),
        _ => Err(invalid(
            format!("{} is not the path of a device", quoted(text)),
            "write a path below /dev, for example /dev/ttyUSB0 or /dev/serial/by-id/NAME",
        )),
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Which::Camera => f.write_str("camera"),
            Which::Gpu => f.write_str("gpu"),
            Which::Gamepad => f.write_str("gamepad"),
            Which::Serial => f.write_str("serial"),
            Which::Usb { vendor, product, serial: None } => write!(f, "usb:{vendor:04x}:{product:04x}"),
            Which::Usb { vendor, product, serial: Some(serial) } => {
                write!(f, "usb:{vendor:04x}:{product:04x}:{serial}")
            }
            Which::Node(path) => path.display().fmt(f),
        }
    }
}

/// Options behind it: ` ro`, ` yes-really`. A serial number may hold anything but a space at its end.
impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Device, Error> {
        let (mut rest, mut read_only, mut confirmed) = (text.trim(), false, false);
        loop {
            if let Some(before) = rest.strip_suffix(" ro") {
                (rest, read_only) = (before.trim_end(), true);
            } else if let Some(before) = rest.strip_suffix(" yes-really") {
                (rest, confirmed) = (before.trim_end(), true);
            } else {
                return Ok(Device { which: rest.parse()?, read_only, confirmed });
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.which.fmt(f)?;
        f.write_str(if self.read_only { " ro" } else { "" })?;
        f.write_str(if self.confirmed { " yes-really" } else { "" })
    }
}

serde_as_string!(Device);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_reads_back() {
        for text in
            ["camera", "gpu ro", "usb:046d:0825", "usb:0403:6001:A50285BI ro", "/dev/ttyUSB0", "/dev/sda ro yes-really"]
        {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        assert_eq!("usb:046D:0825".parse::<Device>().unwrap().to_string(), "usb:046d:0825");
    }

    #[test]
    fn what_names_no_device_is_refused() {
        for bad in ["", "cam", "usb:46d:825", "usb:046d", "usb:046d:0825:", "/dev", "/dev/../etc", "/etc/passwd", "ro"]
        {
            assert!(bad.parse::<Device>().is_err(), "{bad}");
        }
        assert_eq!("camrea".parse::<Device>().unwrap_err().advice(), Some("did you mean 'camera'?"));
    }
}
