//! Writing DER (ITU-T X.690), as much of it as a certificate needs.
//!
//! Every function gives one complete element: tag, length, content.

/// One element; `tag` is the identifier octet.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 6);
    out.push(tag);
    match content.len() {
        short @ 0..=0x7f => out.push(short as u8),
        long => {
            let bytes = long.to_be_bytes();
            let zeros = long.leading_zeros() as usize / 8;
            out.push(0x80 | (bytes.len() - zeros) as u8);
            out.extend_from_slice(&bytes[zeros..]);
        }
    }
    out.extend_from_slice(content);
    out
}

/// SEQUENCE of elements that are encoded already.
pub(super) fn sequence<T: AsRef<[u8]>>(parts: &[T]) -> Vec<u8> {
    element(0x30, &joined(parts))
}

/// SET of one element.
pub(super) fn set_of_one(part: &[u8]) -> Vec<u8> {
    element(0x31, part)
}

/// `[number] EXPLICIT`
pub(super) fn explicit(number: u8, part: &[u8]) -> Vec<u8> {
    element(0xa0 | number, part)
}

/// UTF8String
pub(super) fn utf8(text: &str) -> Vec<u8> {
    element(0x0c, text.as_bytes())
}

/// OCTET STRING
pub(super) fn octets(bytes: &[u8]) -> Vec<u8> {
    element(0x04, bytes)
}

/// BIT STRING of whole octets
pub(super) fn bits(bytes: &[u8]) -> Vec<u8> {
    element(0x03, &joined(&[&[0], bytes]))
}

/// NULL
pub(super) fn null() -> Vec<u8> {
    element(0x05, &[])
}

/// INTEGER, not negative
pub(super) fn integer(value: u64) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    let zeros = (value.leading_zeros() as usize / 8).min(bytes.len() - 1);
    let significant = &bytes[zeros..];
    // A leading bit that is set would make it negative.
    let sign: &[u8] = if significant[0] & 0x80 == 0 {
        &[]
    } else {
        &[0]
    };
    element(0x02, &joined(&[sign, significant]))
}

/// OBJECT IDENTIFIER of at least two arcs
pub(super) fn oid(arcs: &[u32]) -> Vec<u8> {
    let mut content = Vec::new();
    base128(&mut content, arcs[0] * 40 + arcs[1]);
    arcs[2..].iter().for_each(|arc| base128(&mut content, *arc));
    element(0x06, &content)
}

/// UTCTime, `text` being `YYMMDDHHMMSSZ`
pub(super) fn utc_time(text: &str) -> Vec<u8> {
    element(0x17, text.as_bytes())
}

fn base128(out: &mut Vec<u8>, value: u32) {
    let groups = (32 - value.leading_zeros()).div_ceil(7).max(1);
    for group in (0..groups).rev() {
        let more = if group > 0 { 0x80 } else { 0 };
        out.push((value >> (7 * group)) as u8 & 0x7f | more);
    }
}

fn joined<T: AsRef<[u8]>>(parts: &[T]) -> Vec<u8> {
    let mut all = Vec::with_capacity(parts.iter().map(|part| part.as_ref().len()).sum());
    parts
        .iter()
        .for_each(|part| all.extend_from_slice(part.as_ref()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_their_shortest_form() {
        assert_eq!(octets(&[]), [0x04, 0]);
        assert_eq!(octets(&[7; 127])[..2], [0x04, 127]);
        assert_eq!(octets(&[7; 128])[..3], [0x04, 0x81, 128]);
        assert_eq!(octets(&[7; 256])[..4], [0x04, 0x82, 1, 0]);
        assert_eq!(octets(&[7; 65_536])[..5], [0x04, 0x83, 1, 0, 0]);
    }

    #[test]
    fn integers_are_never_negative() {
        assert_eq!(integer(0), [2, 1, 0]);
        assert_eq!(integer(127), [2, 1, 127]);
        assert_eq!(integer(128), [2, 2, 0, 128]);
        assert_eq!(integer(256), [2, 2, 1, 0]);
        assert_eq!(integer(u64::MAX).len(), 2 + 9);
    }

    #[test]
    fn object_identifiers_are_as_the_standard_writes_them() {
        // The private extensions of EFS: 1.3.6.1.4.1.4843.7.N.
        assert_eq!(
            oid(&[1, 3, 6, 1, 4, 1, 4843, 7, 1]),
            [
                0x06, 0x09, 0x2b, 0x06, 0x01, 0x04, 0x01, 0xa5, 0x6b, 0x07, 0x01
            ]
        );
        assert_eq!(oid(&[2, 5, 29, 14]), [0x06, 0x03, 0x55, 0x1d, 0x0e]);
        assert_eq!(
            oid(&[1, 2, 840, 113_549, 1, 1, 11]),
            [
                0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b
            ]
        );
        assert_eq!(oid(&[1, 2, 0])[2..], [0x2a, 0]);
    }
}
