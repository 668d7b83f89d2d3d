//! The part of CRIU's RPC that the relay reads and writes: one protobuf message per packet.
//!
//! A request passes through the relay as bytes. Fields that are not known here must survive, so options are edited in
//! the encoded message: the fields that are set anew are cut out and written again at the end ([`override_options`]).
//! Field numbers are CRIU's (`images/rpc.proto`, unchanged from 4.1 to 4.2).

use prost::Message;

/// The kinds of request and answer the relay tells apart.
pub mod kind {
    /// Dump a tree.
    pub const DUMP: i32 = 1;
    /// Restore a tree.
    pub const RESTORE: i32 = 2;
    /// CRIU asks whether to go on at a stage; the answer has the same kind.
    pub const NOTIFY: i32 = 6;
}

/// Numbers of the options the relay reads or sets.
pub mod option {
    /// Descriptor, in the requesting process, of the directory of the images.
    pub const IMAGES_DIR_FD: u32 = 1;
    /// See the relay's reasons for each of these in `criu::options`.
    pub const TCP_ESTABLISHED: u32 = 5;
    /// Accept device nodes found under another path.
    pub const EVASIVE_DEVICES: u32 = 6;
    /// Dump and restore file locks.
    pub const FILE_LOCKS: u32 = 8;
    /// Verbosity of CRIU's log.
    pub const LOG_LEVEL: u32 = 9;
    /// Descriptor, in the requesting process, of the directory of logs and sockets.
    pub const WORK_DIR_FD: u32 = 17;
    /// Name unlinked files that still have links elsewhere.
    pub const LINK_REMAP: u32 = 18;
    /// What of the CPU a dump describes, and a restore compares with the description in the images.
    pub const CPU_CAP: u32 = 20;
    /// Old switch of the cgroup handling.
    pub const MANAGE_CGROUPS: u32 = 24;
    /// How cgroups are dumped and restored.
    pub const MANAGE_CGROUPS_MODE: u32 = 34;
    /// Largest deleted file that goes into the images, in bytes.
    pub const GHOST_LIMIT: u32 = 35;
    /// Ignore connections that are not accepted yet.
    pub const TCP_SKIP_IN_FLIGHT: u32 = 46;
    /// Leave the pages that are flagged so to somebody else.
    pub const LAZY_PAGES: u32 = 48;
    /// Descriptor, in the requesting process, for the sign that CRIU is ready.
    pub const STATUS_FD: u32 = 49;
    /// How CRIU keeps packets away from sockets in repair.
    pub const NETWORK_LOCK: u32 = 64;
}

/// A request as far as the relay must understand it.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// One of [`kind`].
    #[prost(int32, optional, tag = "1")]
    pub kind: Option<i32>,
    /// Options; see [`option`].
    #[prost(message, optional, tag = "2")]
    pub options: Option<Options>,
    /// The answer to a notification.
    #[prost(bool, optional, tag = "3")]
    pub notify_success: Option<bool>,
}

/// The options that the relay reads.
#[derive(Clone, PartialEq, Message)]
pub struct Options {
    /// See [`option::IMAGES_DIR_FD`].
    #[prost(int32, optional, tag = "1")]
    pub images_dir_fd: Option<i32>,
    /// The root of the tree to dump.
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
    /// See [`option::WORK_DIR_FD`].
    #[prost(int32, optional, tag = "17")]
    pub work_dir_fd: Option<i32>,
    /// See [`option::STATUS_FD`].
    #[prost(int32, optional, tag = "49")]
    pub status_fd: Option<i32>,
}

/// An answer as far as the relay must understand it.
#[derive(Clone, PartialEq, Message)]
pub struct Response {
    /// One of [`kind`].
    #[prost(int32, optional, tag = "1")]
    pub kind: Option<i32>,
    /// Whether the request was carried out. The message below may be set even where it was.
    #[prost(bool, optional, tag = "2")]
    pub success: Option<bool>,
    /// The stage that is reached, in a notification.
    #[prost(message, optional, tag = "5")]
    pub notify: Option<Notify>,
    /// An errno.
    #[prost(int32, optional, tag = "7")]
    pub errno: Option<i32>,
    /// The first line that CRIU logged as an error.
    #[prost(string, optional, tag = "9")]
    pub message: Option<String>,
}

/// A stage that CRIU has reached.
#[derive(Clone, PartialEq, Message)]
pub struct Notify {
    /// The stage's name, such as `post-dump`.
    #[prost(string, optional, tag = "1")]
    pub script: Option<String>,
    /// The root task on the host, at the stages of a restore that know it.
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
}

impl Request {
    /// The answer to a notification.
    pub fn answer(success: bool) -> Self {
        Self {
            kind: Some(kind::NOTIFY),
            options: None,
            notify_success: Some(success),
        }
    }
}

/// An option to set: every option the relay touches is a varint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Field number, one of [`option`].
    pub number: u32,
    /// The value as it is encoded; descriptors and flags are never negative here.
    pub value: u64,
}

/// Why a message cannot be edited.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the request is not a protobuf message: {what} at byte {offset}")]
pub struct Malformed {
    what: &'static str,
    offset: usize,
}

const OPTIONS_FIELD: u32 = 2;

/// Returns `request` with the given options set, and every other field as it was.
pub fn override_options(request: &[u8], settings: &[Setting]) -> Result<Vec<u8>, Malformed> {
    let mut edited = Vec::with_capacity(request.len() + 16 * settings.len());
    let mut options = Vec::new();
    for field in Fields::of(request) {
        let field = field?;
        if field.number == OPTIONS_FIELD && field.wire == LENGTH_DELIMITED {
            options.extend_from_slice(&without(field.payload, settings)?);
        } else {
            edited.extend_from_slice(field.whole);
        }
    }
    for setting in settings {
        prost::encoding::encode_varint(u64::from(setting.number) << 3, &mut options);
        prost::encoding::encode_varint(setting.value, &mut options);
    }
    prost::encoding::encode_varint(
        u64::from(OPTIONS_FIELD << 3) | u64::from(LENGTH_DELIMITED),
        &mut edited,
    );
    prost::encoding::encode_varint(options.len() as u64, &mut edited);
    edited.extend_from_slice(&options);
    Ok(edited)
}

fn without(options: &[u8], settings: &[Setting]) -> Result<Vec<u8>, Malformed> {
    let mut kept = Vec::with_capacity(options.len());
    for field in Fields::of(options) {
        let field = field?;
        if !settings.iter().any(|setting| setting.number == field.number) {
            kept.extend_from_slice(field.whole);
        }
    }
    Ok(kept)
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH_DELIMITED: u8 = 2;
const FIXED32: u8 = 5;

/// One field of an encoded message.
struct Field<'a> {
    number: u32,
    wire: u8,
    /// Tag and value.
    whole: &'a [u8],
    /// The value without tag and length.
    payload: &'a [u8],
}

/// The fields of an encoded message, in order; ends after the first error.
struct Fields<'a> {
    message: &'a [u8],
    offset: usize,
}

impl<'a> Fields<'a> {
    fn of(message: &'a [u8]) -> Self {
        Self { message, offset: 0 }
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut rest = self.message.get(self.offset..).unwrap_or_default();
        let before = rest.len();
        let value =
            prost::encoding::decode_varint(&mut rest).map_err(|_| self.broken("a number is cut off"))?;
        self.offset += before - rest.len();
        Ok(value)
    }

    fn skip(&mut self, length: usize) -> Result<(), Malformed> {
        let end = self
            .offset
            .checked_add(length)
            .filter(|end| *end <= self.message.len());
        self.offset = end.ok_or_else(|| self.broken("a value is cut off"))?;
        Ok(())
    }

    fn broken(&self, what: &'static str) -> Malformed {
        Malformed {
            what,
            offset: self.offset,
        }
    }

    fn read(&mut self) -> Result<Field<'a>, Malformed> {
        let start = self.offset;
        let tag = self.varint()?;
        let wire = (tag & 7) as u8;
        let number = u32::try_from(tag >> 3).map_err(|_| self.broken("a field number is too large"))?;
        let mut value = self.offset;
        match wire {
            VARINT => {
                self.varint()?;
            }
            FIXED64 => self.skip(8)?,
            FIXED32 => self.skip(4)?,
            LENGTH_DELIMITED => {
                let length = self.varint()?;
                value = self.offset;
                self.skip(usize::try_from(length).map_err(|_| self.broken("a length is too large"))?)?;
            }
            _ => return Err(self.broken("an unknown wire type")),
        }
        let message = self.message;
        Ok(Field {
            number,
            wire,
            whole: &message[start..self.offset],
            payload: &message[value..self.offset],
        })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.message.len() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.offset = self.message.len();
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::{Options, Request, Setting, kind, option, override_options};
    use proptest::prelude::*;
    use prost::Message;

    /// A request with fields that the relay does not know, inside and outside the options.
    #[derive(Clone, PartialEq, Message)]
    struct Wider {
        #[prost(int32, optional, tag = "1")]
        kind: Option<i32>,
        #[prost(message, optional, tag = "2")]
        options: Option<WiderOptions>,
        #[prost(bool, optional, tag = "4")]
        keep_open: Option<bool>,
        #[prost(fixed64, optional, tag = "99")]
        later: Option<u64>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct WiderOptions {
        #[prost(int32, optional, tag = "1")]
        images_dir_fd: Option<i32>,
        #[prost(int32, optional, tag = "9")]
        log_level: Option<i32>,
        #[prost(string, repeated, tag = "37")]
        external: Vec<String>,
        #[prost(fixed32, optional, tag = "90")]
        later: Option<u32>,
    }

    fn wider() -> Wider {
        let options = WiderOptions {
            images_dir_fd: Some(7),
            log_level: Some(4),
            external: vec!["mnt[/etc/hosts]:/etc/hosts".into(), "net[1]:x".into()],
            later: Some(5),
        };
        Wider {
            kind: Some(kind::DUMP),
            options: Some(options),
            keep_open: Some(true),
            later: Some(8),
        }
    }

    #[test]
    fn only_the_options_that_are_set_change() {
        let settings = [
            Setting {
                number: option::LOG_LEVEL,
                value: 2,
            },
            Setting {
                number: option::IMAGES_DIR_FD,
                value: 11,
            },
        ];
        let edited = override_options(&wider().encode_to_vec(), &settings).unwrap();
        let mut expected = wider();
        let options = expected.options.as_mut().unwrap();
        options.log_level = Some(2);
        options.images_dir_fd = Some(11);
        assert_eq!(Wider::decode(edited.as_slice()).unwrap(), expected);
    }

    #[test]
    fn an_overridden_option_stands_in_the_message_once() {
        let setting = Setting {
            number: option::LOG_LEVEL,
            value: 3,
        };
        let once = override_options(&wider().encode_to_vec(), &[setting]).unwrap();
        let twice = override_options(&once, &[setting]).unwrap();
        assert_eq!(once, twice);
    }

    #[test]
    fn a_request_without_options_gets_some() {
        let bare = Request {
            kind: Some(kind::RESTORE),
            options: None,
            notify_success: None,
        };
        let edited = override_options(
            &bare.encode_to_vec(),
            &[Setting {
                number: option::WORK_DIR_FD,
                value: 5,
            }],
        )
        .unwrap();
        let decoded = Request::decode(edited.as_slice()).unwrap();
        assert_eq!(
            decoded.options,
            Some(Options {
                work_dir_fd: Some(5),
                ..Options::default()
            })
        );
    }

    #[test]
    fn a_truncated_request_is_an_error() {
        let whole = wider().encode_to_vec();
        let cut = &whole[..whole.len() - 3];
        assert!(override_options(cut, &[]).is_err());
        assert!(override_options(&[0x12, 0xff, 0xff, 0xff, 0xff, 0x0f], &[]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_edited_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let setting = Setting { number: option::LOG_LEVEL, value: 2 };
            if let Ok(edited) = override_options(&bytes, &[setting]) {
                prop_assert!(override_options(&edited, &[]).is_ok());
            }
        }
    }
}
