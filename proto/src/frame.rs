//! The header of the bulk data streams (ALPN `tranship-data/1`).
//!
//! ```text
//!  0       1       2       4               8                              16
//!  +-------+-------+-------+---------------+------------------------------+
//!  | kind  |   0   | tree  |    length     |            offset            |  then `length` bytes of payload
//!  +-------+-------+-------+---------------+------------------------------+
//! ```
//!
//! Numbers are little-endian. A stream is `Hello`, then for each tree `TreeBegin`, any number of `Entry` (each file's
//! followed by its `Data`, in ascending order of `offset`, holes left out), `TreeEnd`; at last `End`, whose length is
//! 0. `tree` numbers the trees of one stream from 0. `offset` is only used by `Data`, 0 elsewhere. The payload of
//! `Hello`, `TreeBegin`, `Entry` and `TreeEnd` is a protobuf message of [`crate::v1`]; that of `Data` is raw bytes.
//!
//! A stream of memory is `Hello`, then any number of `Pages` and, after those of one round, `RoundEnd`; at last `End`.
//! In both `offset` is the round; the payload of `Pages` is that of [`crate::pages`], `RoundEnd` has none.
//!
//! The digest of a tree is BLAKE3 over the header and payload of each of its `Entry` and `Data` frames, in order.

use crate::limits::{MAX_DATA_BYTES, MAX_FILE_BYTES, MAX_MESSAGE_BYTES, MAX_PAGES_BYTES, MAX_TREES};

/// Bytes of a header on the wire.
pub const HEADER_BYTES: usize = 16;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// [`crate::v1::StreamHello`]: who this stream belongs to. The first frame, once.
    Hello = 1,
    /// [`crate::v1::TreeBegin`].
    TreeBegin = 2,
    /// [`crate::v1::TreeEntry`].
    Entry = 3,
    /// Raw bytes of the last entry's content, at `offset`.
    Data = 4,
    /// [`crate::v1::TreeEnd`].
    TreeEnd = 5,
    /// Nothing follows; a stream that stops without it was cut.
    End = 6,
    /// Pages of memory: see [`crate::pages`]. `offset` is the round they were read in.
    Pages = 7,
    /// This stream has no more pages of the round `offset`.
    RoundEnd = 8,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::TreeBegin,
            3 => Self::Entry,
            4 => Self::Data,
            5 => Self::TreeEnd,
            6 => Self::End,
            7 => Self::Pages,
            8 => Self::RoundEnd,
            _ => return None,
        })
    }

    /// Largest payload of a frame of this kind.
    #[must_use]
    pub fn max_length(self) -> u32 {
        match self {
            Self::Data => MAX_DATA_BYTES,
            Self::Pages => MAX_PAGES_BYTES,
            Self::End | Self::RoundEnd => 0,
            Self::Hello | Self::TreeBegin | Self::Entry | Self::TreeEnd => MAX_MESSAGE_BYTES,
        }
    }
}

/// A header that has passed every check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the payload is.
    pub kind: FrameKind,
    /// Number of the tree in this stream.
    pub tree: u16,
    /// Bytes of payload.
    pub length: u32,
    /// Where in the file the payload belongs, in bytes; of pages the round.
    pub offset: u64,
}

/// Why sixteen bytes are not a header.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// No frame of that kind.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// A byte or field that must be zero is not.
    #[error("a field that must be zero is not in a frame of kind {0:?}")]
    NotZero(FrameKind),
    /// More payload than the kind may have, or none where there must be some.
    #[error("a payload of {length} bytes in a frame of kind {kind:?}, which takes at most {max}")]
    Length {
        /// Kind of the frame.
        kind: FrameKind,
        /// What the header says.
        length: u32,
        /// What is allowed.
        max: u32,
    },
    /// Data beyond the end of the largest file.
    #[error("data at offset {0}, beyond the largest file")]
    Offset(u64),
    /// A round beyond any that is ever reached.
    #[error("round {0} is beyond the limit")]
    Round(u64),
    /// More trees than a migration has.
    #[error("tree number {0} is beyond the limit")]
    Tree(u16),
}

impl FrameHeader {
    /// The header as it goes over the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let [kind, _, tree0, tree1, rest @ ..] = &mut bytes;
        *kind = self.kind as u8;
        [*tree0, *tree1] = self.tree.to_le_bytes();
        let (length, offset) = rest.split_at_mut(4);
        length.copy_from_slice(&self.length.to_le_bytes());
        offset.copy_from_slice(&self.offset.to_le_bytes());
        bytes
    }

    /// Reads and checks a header.
    ///
    /// # Errors
    /// [`FrameError`] for anything a correct sender never sends.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let [kind, zero, t0, t1, l0, l1, l2, l3, o0, o1, o2, o3, o4, o5, o6, o7] = *bytes;
        let header = Self {
            kind: FrameKind::from_byte(kind).ok_or(FrameError::Kind(kind))?,
            tree: u16::from_le_bytes([t0, t1]),
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            offset: u64::from_le_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
        };
        if zero != 0 {
            return Err(FrameError::NotZero(header.kind));
        }
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), FrameError> {
        let max = self.kind.max_length();
        let empty_data = self.kind == FrameKind::Data && self.length == 0;
        if self.length > max || empty_data {
            return Err(FrameError::Length {
                kind: self.kind,
                length: self.length,
                max,
            });
        }
        if self.tree >= MAX_TREES {
            return Err(FrameError::Tree(self.tree));
        }
        match self.kind {
            FrameKind::Data => match self.offset.checked_add(u64::from(self.length)) {
                Some(end) if end <= MAX_FILE_BYTES => Ok(()),
                _ => Err(FrameError::Offset(self.offset)),
            },
            FrameKind::Pages | FrameKind::RoundEnd if self.offset > u64::from(u32::MAX) => {
                Err(FrameError::Round(self.offset))
            }
            FrameKind::Pages | FrameKind::RoundEnd => Ok(()),
            _ if self.offset != 0 => Err(FrameError::NotZero(self.kind)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_wire_has_these_bytes() {
        let header = FrameHeader {
            kind: FrameKind::Data,
            tree: 0x0102,
            length: 0x0003_0201,
            offset: 0x0807_0605_0403,
        };
        let golden = [
            4, 0, 0x02, 0x01, 0x01, 0x02, 0x03, 0x00, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x00, 0x00,
        ];
        assert_eq!(header.encode(), golden);
        assert_eq!(FrameHeader::decode(&golden), Ok(header));
        let end = FrameHeader {
            kind: FrameKind::End,
            tree: 0,
            length: 0,
            offset: 0,
        };
        assert_eq!(end.encode(), [6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn frames_of_memory_carry_their_round() {
        let header = FrameHeader {
            kind: FrameKind::Pages,
            tree: 0,
            length: 24,
            offset: 0x0102,
        };
        let golden = [7, 0, 0, 0, 24, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0];
        assert_eq!(header.encode(), golden);
        assert_eq!(FrameHeader::decode(&golden), Ok(header));
        let far = FrameHeader {
            kind: FrameKind::RoundEnd,
            length: 0,
            offset: 1 << 32,
            ..header
        };
        assert_eq!(
            FrameHeader::decode(&far.encode()),
            Err(FrameError::Round(1 << 32))
        );
    }

    #[test]
    fn each_field_out_of_bounds_is_named() {
        let good = FrameHeader {
            kind: FrameKind::Entry,
            tree: 0,
            length: 10,
            offset: 0,
        };
        let mut bytes = good.encode();
        bytes[0] = 9;
        assert_eq!(FrameHeader::decode(&bytes), Err(FrameError::Kind(9)));
        bytes = good.encode();
        bytes[1] = 1;
        assert_eq!(
            FrameHeader::decode(&bytes),
            Err(FrameError::NotZero(FrameKind::Entry))
        );
        let long = FrameHeader {
            length: MAX_MESSAGE_BYTES + 1,
            ..good
        };
        assert!(matches!(
            FrameHeader::decode(&long.encode()),
            Err(FrameError::Length { .. })
        ));
        let far = FrameHeader {
            kind: FrameKind::Data,
            offset: u64::MAX - 1,
            ..good
        };
        assert_eq!(
            FrameHeader::decode(&far.encode()),
            Err(FrameError::Offset(u64::MAX - 1))
        );
        let many = FrameHeader {
            tree: MAX_TREES,
            ..good
        };
        assert_eq!(
            FrameHeader::decode(&many.encode()),
            Err(FrameError::Tree(MAX_TREES))
        );
        let nothing = FrameHeader {
            kind: FrameKind::Data,
            length: 0,
            ..good
        };
        assert!(matches!(
            FrameHeader::decode(&nothing.encode()),
            Err(FrameError::Length { .. })
        ));
    }

    proptest! {
        #[test]
        fn whatever_decodes_encodes_to_the_same_bytes(bytes: [u8; HEADER_BYTES]) {
            if let Ok(header) = FrameHeader::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
                prop_assert!(header.length <= header.kind.max_length());
            }
        }

        #[test]
        fn data_within_bounds_survives_the_wire(tree in 0..MAX_TREES, length in 1..=MAX_DATA_BYTES, offset in 0..1u64 << 40) {
            let header = FrameHeader { kind: FrameKind::Data, tree, length, offset };
            prop_assert_eq!(FrameHeader::decode(&header.encode()), Ok(header));
        }
    }
}
