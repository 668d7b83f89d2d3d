//! The kernel's description of its own types (BTF), as far as it takes to find a function and fields of a structure.

use std::collections::HashMap;

const MAGIC: u16 = 0xEB9F;

const STRUCT: u32 = 4;
const UNION: u32 = 5;
const FUNCTION: u32 = 12;

/// How deep structures without a name may nest.
const MAX_DEPTH: u32 = 8;

/// One type: where its record begins, after its first three words.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    bitfields: bool,
    members: u32,
    /// Where the members are.
    at: usize,
}

/// All types.
pub struct Types<'a> {
    types: Vec<Type>,
    records: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Types<'a> {
    /// Reads `/sys/kernel/btf/vmlinux`. `None` where it is not what it should be.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let short = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        if short(0)? != MAGIC {
            return None;
        }
        let header = word(bytes, 4)? as usize;
        let section = |at: usize| {
            let start = header.checked_add(word(bytes, at)? as usize)?;
            bytes.get(start..start.checked_add(word(bytes, at + 4)? as usize)?)
        };
        let (records, strings) = (section(8)?, section(16)?);
        // Numbers begin at 1; 0 is void.
        let mut types = vec![Type {
            name: 0,
            kind: 0,
            bitfields: false,
            members: 0,
            at: 0,
        }];
        let mut at = 0;
        while at < records.len() {
            let info = word(records, at + 4)?;
            let found = Type {
                name: word(records, at)?,
                kind: info >> 24 & 0x1f,
                bitfields: info >> 31 == 1,
                members: info & 0xffff,
                at: at + 12,
            };
            at = found.at.checked_add(extra(found.kind, found.members)?)?;
            types.push(found);
        }
        Some(Self {
            types,
            records,
            strings,
        })
    }

    /// The number of a function.
    pub fn function(&self, name: &str) -> Option<u32> {
        let found = self
            .types
            .iter()
            .position(|one| one.kind == FUNCTION && self.is(one.name, name))?;
        u32::try_from(found).ok()
    }

    /// Where fields of a structure are, in bytes; fields of structures without a name within it count as its own.
    pub fn fields<const N: usize>(&self, structure: &str, names: [&str; N]) -> Option<[i16; N]> {
        let found = self
            .types
            .iter()
            .find(|one| one.kind == STRUCT && self.is(one.name, structure))?;
        let mut fields = HashMap::new();
        self.collect(*found, 0, 0, &names, &mut fields)?;
        let mut places = [0; N];
        for (place, name) in places.iter_mut().zip(names) {
            let bits = *fields.get(name)?;
            *place = (bits % 8 == 0)
                .then_some(bits / 8)
                .and_then(|bytes| i16::try_from(bytes).ok())?;
        }
        Some(places)
    }

    fn collect<'n>(
        &self,
        structure: Type,
        base_bits: u32,
        depth: u32,
        names: &[&'n str],
        fields: &mut HashMap<&'n str, u32>,
    ) -> Option<()> {
        for member in 0..structure.members as usize {
            let at = structure.at + member * 12;
            let (name, kind, offset) = (
                word(self.records, at)?,
                word(self.records, at + 4)?,
                word(self.records, at + 8)?,
            );
            let offset = if structure.bitfields {
                offset & 0x00ff_ffff
            } else {
                offset
            };
            let bits = base_bits.checked_add(offset)?;
            if name == 0 {
                let inner = *self.types.get(kind as usize)?;
                if matches!(inner.kind, STRUCT | UNION) && depth < MAX_DEPTH {
                    self.collect(inner, bits, depth + 1, names, fields)?;
                }
            } else if let Some(wanted) = names.iter().find(|wanted| self.is(name, wanted)) {
                fields.insert(wanted, bits);
            }
        }
        Some(())
    }

    fn is(&self, name: u32, text: &str) -> bool {
        let rest = self.strings.get(name as usize..).unwrap_or_default();
        rest.strip_prefix(text.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// Bytes that follow the first three words of a record.
fn extra(kind: u32, members: u32) -> Option<usize> {
    let members = members as usize;
    Some(match kind {
        // Integers, variables, tags.
        1 | 14 | 17 => 4,
        // Arrays.
        3 => 12,
        // Structures, unions, sections, enumerations of 64 bits.
        4 | 5 | 15 | 19 => 12 * members,
        // Enumerations, prototypes.
        6 | 13 => 8 * members,
        // Pointers, forward declarations, other names, qualifiers, functions, floats, tags of types.
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}
