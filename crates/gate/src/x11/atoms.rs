//! The names that matter to the gate, and their numbers on this server.

/// Numbers that every server has (X protocol, appendix B).
pub mod fixed {
    /// `PRIMARY`
    pub const PRIMARY: u32 = 1;
    /// `SECONDARY`
    pub const SECONDARY: u32 = 2;
    /// `ATOM`
    pub const ATOM: u32 = 4;
    /// `RESOURCE_MANAGER`
    pub const RESOURCE_MANAGER: u32 = 23;
    /// `STRING`
    pub const STRING: u32 = 31;
    /// `WM_CLIENT_MACHINE`
    pub const WM_CLIENT_MACHINE: u32 = 36;
    /// `WM_ICON_NAME`
    pub const WM_ICON_NAME: u32 = 37;
    /// `WM_CLASS`
    pub const WM_CLASS: u32 = 67;
    /// `WM_NAME`
    pub const WM_NAME: u32 = 39;
    /// `WM_TRANSIENT_FOR`
    pub const WM_TRANSIENT_FOR: u32 = 68;
}

macro_rules! names {
    ($($known:ident $name:literal)*) => {
        /// A name whose number the server chooses.
        #[allow(missing_docs)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Known { $($known),* }

        /// All of them, in the order of [`Known`].
        pub const NAMES: &[&str] = &[$($name),*];
    };
}

names! {
    Clipboard "CLIPBOARD"
    XdndSelection "XdndSelection"
    XsettingsOwner "_XSETTINGS_S0"
    Compositor "_NET_WM_CM_S0"
    XsettingsSettings "_XSETTINGS_SETTINGS"
    Supported "_NET_SUPPORTED"
    SupportingCheck "_NET_SUPPORTING_WM_CHECK"
    WorkArea "_NET_WORKAREA"
    DesktopGeometry "_NET_DESKTOP_GEOMETRY"
    DesktopViewport "_NET_DESKTOP_VIEWPORT"
    CurrentDesktop "_NET_CURRENT_DESKTOP"
    NumberOfDesktops "_NET_NUMBER_OF_DESKTOPS"
    ShowingDesktop "_NET_SHOWING_DESKTOP"
    GtkWorkAreas "_GTK_WORKAREAS_D0"
    XkbRules "_XKB_RULES_NAMES"
    WmState "WM_STATE"
    FrameExtents "_NET_FRAME_EXTENTS"
    NetName "_NET_WM_NAME"
    NetIconName "_NET_WM_ICON_NAME"
    NetPid "_NET_WM_PID"
    NetStrut "_NET_WM_STRUT"
    NetStrutPartial "_NET_WM_STRUT_PARTIAL"
    WindowType "_NET_WM_WINDOW_TYPE"
    TypeDock "_NET_WM_WINDOW_TYPE_DOCK"
    TypeDesktop "_NET_WM_WINDOW_TYPE_DESKTOP"
    TypeNormal "_NET_WM_WINDOW_TYPE_NORMAL"
    Hint "_LAZARET_CONTAINER"
    Utf8 "UTF8_STRING"
    NetWmState "_NET_WM_STATE"
    WmChangeState "WM_CHANGE_STATE"
    NetActiveWindow "_NET_ACTIVE_WINDOW"
    NetCloseWindow "_NET_CLOSE_WINDOW"
    NetMoveresize "_NET_WM_MOVERESIZE"
    NetMoveresizeWindow "_NET_MOVERESIZE_WINDOW"
    NetRequestExtents "_NET_REQUEST_FRAME_EXTENTS"
    NetDesktop "_NET_WM_DESKTOP"
    NetFullscreenMonitors "_NET_WM_FULLSCREEN_MONITORS"
    GtkShowMenu "_GTK_SHOW_WINDOW_MENU"
    WmProtocols "WM_PROTOCOLS"
    NetPing "_NET_WM_PING"
    Targets "TARGETS"
    Timestamp "TIMESTAMP"
    Incr "INCR"
    Text "TEXT"
    CompoundText "COMPOUND_TEXT"
    TextPlain "text/plain"
    TextPlainUtf8 "text/plain;charset=utf-8"
    TextHtml "text/html"
    ImagePng "image/png"
    ImageJpeg "image/jpeg"
    ImageBmp "image/bmp"
    ImageTiff "image/tiff"
    TextRtf "text/rtf"
    Transfer "_LAZARET_TRANSFER"
}

/// The numbers of [`NAMES`] on one server.
#[derive(Clone, Debug)]
pub struct Atoms(Vec<u32>);

impl Atoms {
    /// From the server's answers, in the order of [`NAMES`].
    pub fn new(numbers: Vec<u32>) -> Option<Atoms> {
        (numbers.len() == NAMES.len()).then_some(Atoms(numbers))
    }

    /// The number of a name.
    pub fn of(&self, known: Known) -> u32 {
        self.0[known as usize]
    }

    /// Whether `number` is that of one of `names`.
    pub fn is_one_of(&self, number: u32, names: &[Known]) -> bool {
        names.iter().any(|&name| self.of(name) == number)
    }
}
