//! What each core request may name and do. The table is the policy's documentation; a request that is not in it is not
//! passed on. Sizes and offsets are those of the X protocol's appendix B.

/// What a field of a request may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum May {
    /// Something that this container has made.
    Own,
    /// The same, or nothing.
    OwnOrNone,
    /// The same, or a root window.
    OwnOrRoot,
    /// The same, or a frame that the window manager has put around a window of this container.
    Look,
    /// A colour map of this container's, or a screen's default one.
    Colormap,
}

/// The error that a program gets to see (X protocol, appendix B).
pub mod code {
    /// An opcode that nobody knows.
    pub const REQUEST: u8 = 1;
    /// A number out of its range.
    pub const VALUE: u8 = 2;
    /// No such window.
    pub const WINDOW: u8 = 3;
    /// No such pixmap.
    pub const PIXMAP: u8 = 4;
    /// No such cursor.
    pub const CURSOR: u8 = 6;
    /// No such font.
    pub const FONT: u8 = 7;
    /// No such drawable.
    pub const DRAWABLE: u8 = 9;
    /// Not yours.
    pub const ACCESS: u8 = 10;
    /// Too much.
    pub const ALLOC: u8 = 11;
    /// No such colour map.
    pub const COLORMAP: u8 = 12;
    /// No such graphics context.
    pub const GC: u8 = 13;
    /// The length does not fit the request.
    pub const LENGTH: u8 = 16;
}

/// What happens to a request whose fields name what they may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// It is passed on.
    Pass,
    /// Nothing, without an error: programs do not expect that it can fail.
    Ignore,
    /// An Access error, as the server answers untrusted programs.
    Refuse,
    /// The filter has a rule of its own for it.
    Look,
}

/// A core request.
#[derive(Debug)]
pub struct Request {
    /// Its number.
    pub opcode: u8,
    /// The bytes it has at least.
    pub size: u8,
    /// Whether the server answers it.
    pub reply: bool,
    /// Identifiers: where they are, what they may name, the error otherwise.
    pub names: &'static [(u8, May, u8)],
    /// What happens to it.
    pub deed: Deed,
}

const fn request(opcode: u8, size: u8, names: &'static [(u8, May, u8)], deed: Deed) -> Request {
    Request { opcode, size, reply: false, names, deed }
}

const fn question(opcode: u8, size: u8, names: &'static [(u8, May, u8)], deed: Deed) -> Request {
    Request { opcode, size, reply: true, names, deed }
}

type Names = &'static [(u8, May, u8)];

const NONE: Names = &[];
const WINDOW: Names = &[(4, May::Own, code::WINDOW)];
const SEEN: Names = &[(4, May::Look, code::WINDOW)];
const DRAW: Names = &[(4, May::Own, code::DRAWABLE), (8, May::Own, code::GC)];
const COPY: Names = &[(4, May::Own, code::DRAWABLE), (8, May::Own, code::DRAWABLE), (12, May::Own, code::GC)];
const GC: Names = &[(4, May::Own, code::GC)];
const FONT: Names = &[(4, May::Own, code::FONT)];
const CURSOR: Names = &[(4, May::Own, code::CURSOR)];
const COLORMAP: Names = &[(4, May::Colormap, code::COLORMAP)];

use Deed::{Ignore, Look, Pass, Refuse};

/// Every request that is known, by rising number.
pub const REQUESTS: &[Request] = &[
    // CreateWindow: the parent; its values are looked at.
    request(1, 32, &[(8, May::OwnOrRoot, code::WINDOW)], Look),
    // ChangeWindowAttributes: events may be asked of the root.
    request(2, 12, NONE, Look),
    // GetWindowAttributes
    question(3, 8, SEEN, Pass),
    // DestroyWindow, DestroySubwindows, ChangeSaveSet
    request(4, 8, WINDOW, Look),
    request(5, 8, WINDOW, Pass),
    request(6, 8, WINDOW, Pass),
    // ReparentWindow: into a window of another program would be a disguise.
    request(7, 16, &[(4, May::Own, code::WINDOW), (8, May::OwnOrRoot, code::WINDOW)], Look),
    // MapWindow, MapSubwindows, UnmapWindow, UnmapSubwindows, ConfigureWindow, CirculateWindow
    request(8, 8, WINDOW, Look),
    request(9, 8, WINDOW, Pass),
    request(10, 8, WINDOW, Look),
    request(11, 8, WINDOW, Pass),
    request(12, 12, WINDOW, Look),
    request(13, 8, WINDOW, Pass),
    // GetGeometry, QueryTree
    question(14, 8, &[(4, May::Look, code::DRAWABLE)], Pass),
    question(15, 8, SEEN, Look),
    // InternAtom: atoms are never freed. GetAtomName.
    question(16, 8, NONE, Look),
    question(17, 8, NONE, Pass),
    // ChangeProperty, DeleteProperty, GetProperty, ListProperties
    request(18, 24, NONE, Look),
    request(19, 12, NONE, Look),
    question(20, 24, NONE, Look),
    question(21, 8, NONE, Look),
    // SetSelectionOwner, GetSelectionOwner, ConvertSelection: each container has clipboards of its own.
    request(22, 16, &[(4, May::OwnOrNone, code::WINDOW)], Look),
    question(23, 8, NONE, Look),
    request(24, 24, WINDOW, Look),
    // SendEvent
    request(25, 44, NONE, Look),
    // GrabPointer, UngrabPointer, GrabButton, UngrabButton, ChangeActivePointerGrab
    question(
        26,
        24,
        &[(4, May::Own, code::WINDOW), (12, May::OwnOrNone, code::WINDOW), (16, May::OwnOrNone, code::CURSOR)],
        Look,
    ),
    request(27, 8, NONE, Look),
    request(
        28,
        24,
        &[(4, May::Own, code::ACCESS), (12, May::OwnOrNone, code::WINDOW), (16, May::OwnOrNone, code::CURSOR)],
        Look,
    ),
    request(29, 12, WINDOW, Pass),
    request(30, 16, &[(4, May::OwnOrNone, code::CURSOR)], Pass),
    // GrabKeyboard: programs believe they have it. UngrabKeyboard, GrabKey, UngrabKey, AllowEvents
    question(31, 16, WINDOW, Look),
    request(32, 8, NONE, Pass),
    request(33, 16, &[(4, May::Own, code::ACCESS)], Look),
    request(34, 12, WINDOW, Pass),
    request(35, 8, NONE, Pass),
    // GrabServer, UngrabServer
    request(36, 4, NONE, Ignore),
    request(37, 4, NONE, Ignore),
    // QueryPointer, GetMotionEvents, TranslateCoordinates
    question(38, 8, SEEN, Look),
    question(39, 16, WINDOW, Pass),
    question(40, 16, &[(4, May::Look, code::WINDOW), (8, May::Look, code::WINDOW)], Look),
    // WarpPointer, SetInputFocus, GetInputFocus, QueryKeymap
    request(41, 24, NONE, Look),
    request(42, 12, NONE, Look),
    question(43, 4, NONE, Look),
    question(44, 4, NONE, Look),
    // OpenFont, CloseFont, QueryFont, QueryTextExtents, ListFonts, ListFontsWithInfo, SetFontPath, GetFontPath
    request(45, 12, NONE, Pass),
    request(46, 8, FONT, Pass),
    question(47, 8, FONT, Pass),
    question(48, 8, FONT, Pass),
    question(49, 8, NONE, Pass),
    question(50, 8, NONE, Look),
    request(51, 8, NONE, Refuse),
    question(52, 4, NONE, Pass),
    // CreatePixmap, FreePixmap
    request(53, 16, &[(8, May::OwnOrRoot, code::DRAWABLE)], Pass),
    request(54, 8, &[(4, May::Own, code::PIXMAP)], Pass),
    // CreateGC and ChangeGC: a foreign pixmap as a tile would be readable. CopyGC, SetDashes, SetClipRectangles, FreeGC
    request(55, 16, &[(8, May::OwnOrRoot, code::DRAWABLE)], Look),
    request(56, 12, GC, Look),
    request(57, 16, &[(4, May::Own, code::GC), (8, May::Own, code::GC)], Pass),
    request(58, 12, GC, Pass),
    request(59, 12, GC, Pass),
    request(60, 8, GC, Pass),
    // ClearArea, CopyArea, CopyPlane
    request(61, 16, WINDOW, Pass),
    request(62, 28, COPY, Pass),
    request(63, 32, COPY, Pass),
    // PolyPoint, PolyLine, PolySegment, PolyRectangle, PolyArc, FillPoly, PolyFillRectangle, PolyFillArc
    request(64, 12, DRAW, Pass),
    request(65, 12, DRAW, Pass),
    request(66, 12, DRAW, Pass),
    request(67, 12, DRAW, Pass),
    request(68, 12, DRAW, Pass),
    request(69, 16, DRAW, Pass),
    request(70, 12, DRAW, Pass),
    request(71, 12, DRAW, Pass),
    // PutImage, GetImage
    request(72, 24, DRAW, Pass),
    question(73, 20, &[(4, May::Own, code::DRAWABLE)], Pass),
    // PolyText8, PolyText16, ImageText8, ImageText16
    request(74, 16, DRAW, Pass),
    request(75, 16, DRAW, Pass),
    request(76, 16, DRAW, Pass),
    request(77, 16, DRAW, Pass),
    // CreateColormap, FreeColormap, CopyColormapAndFree, InstallColormap, UninstallColormap, ListInstalledColormaps
    request(78, 16, &[(8, May::OwnOrRoot, code::WINDOW)], Pass),
    request(79, 8, COLORMAP, Pass),
    request(80, 12, &[(8, May::Colormap, code::COLORMAP)], Pass),
    request(81, 8, COLORMAP, Pass),
    request(82, 8, &[(4, May::Own, code::COLORMAP)], Pass),
    question(83, 8, SEEN, Pass),
    // AllocColor, AllocNamedColor, AllocColorCells, AllocColorPlanes, FreeColors, StoreColors, StoreNamedColor,
    // QueryColors, LookupColor
    question(84, 16, COLORMAP, Pass),
    question(85, 12, COLORMAP, Pass),
    question(86, 12, COLORMAP, Pass),
    question(87, 16, COLORMAP, Pass),
    request(88, 12, COLORMAP, Pass),
    request(89, 8, COLORMAP, Pass),
    request(90, 16, COLORMAP, Pass),
    question(91, 8, COLORMAP, Pass),
    question(92, 12, COLORMAP, Pass),
    // CreateCursor, CreateGlyphCursor, FreeCursor, RecolorCursor
    request(93, 32, &[(8, May::Own, code::PIXMAP), (12, May::OwnOrNone, code::PIXMAP)], Pass),
    request(94, 32, &[(8, May::Own, code::FONT), (12, May::OwnOrNone, code::FONT)], Pass),
    request(95, 8, CURSOR, Pass),
    request(96, 20, CURSOR, Pass),
    // QueryBestSize, QueryExtension, ListExtensions
    question(97, 12, &[(4, May::OwnOrRoot, code::DRAWABLE)], Pass),
    question(98, 8, NONE, Look),
    question(99, 4, NONE, Look),
    // ChangeKeyboardMapping, GetKeyboardMapping, ChangeKeyboardControl, GetKeyboardControl
    request(100, 8, NONE, Refuse),
    question(101, 8, NONE, Pass),
    request(102, 8, NONE, Ignore),
    question(103, 4, NONE, Pass),
    // Bell: the server's Access error makes GTK 3 abort. ChangePointerControl, GetPointerControl
    request(104, 4, NONE, Ignore),
    request(105, 12, NONE, Ignore),
    question(106, 4, NONE, Pass),
    // SetScreenSaver, GetScreenSaver, ChangeHosts, ListHosts, SetAccessControl
    request(107, 12, NONE, Ignore),
    question(108, 4, NONE, Pass),
    request(109, 8, NONE, Refuse),
    question(110, 4, NONE, Refuse),
    request(111, 4, NONE, Refuse),
    // SetCloseDownMode: windows that outlive their container would belong to nobody. KillClient
    request(112, 4, NONE, Ignore),
    request(113, 8, &[(4, May::Own, code::VALUE)], Pass),
    // RotateProperties: would move any text into a title. ForceScreenSaver
    request(114, 12, NONE, Ignore),
    request(115, 4, NONE, Ignore),
    // SetPointerMapping, GetPointerMapping, SetModifierMapping, GetModifierMapping, NoOperation
    question(116, 4, NONE, Refuse),
    question(117, 4, NONE, Pass),
    question(118, 4, NONE, Refuse),
    question(119, 4, NONE, Pass),
    request(127, 4, NONE, Pass),
];

/// The request of this number.
pub fn find(opcode: u8) -> Option<&'static Request> {
    match opcode {
        1..=119 => REQUESTS.get(usize::from(opcode) - 1),
        127 => REQUESTS.last(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_finds_its_own_request() {
        for opcode in 0..=255 {
            match find(opcode) {
                Some(found) => assert_eq!(found.opcode, opcode),
                None => assert!(opcode == 0 || opcode > 119),
            }
        }
    }

    #[test]
    fn names_lie_within_the_least_size() {
        for request in REQUESTS {
            assert!(request.names.iter().all(|&(at, ..)| at + 4 <= request.size), "{request:?}");
        }
    }
}
