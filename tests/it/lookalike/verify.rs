//! Reads a client certificate as EFS does and finds what is wrong with it.
//!
//! Written from the description of the format, with other code than the
//! client's: every field is checked, not only those that EFS needs.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::World;

const BEHIND: i64 = 15 * 60;
const GOOD_FOR: i64 = 3 * 3600;

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claims {
    pub(crate) serial: u64,
    pub(crate) access_point: Option<String>,
    pub(crate) key_id: Option<String>,
    pub(crate) source: String,
}

/// Checks a certificate at a time (seconds since 1970).
pub(crate) fn check(der: &[u8], world: &World, now: i64) -> Result<Claims, String> {
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|why| format!("not a certificate: {why}"))?;
    demand(rest.is_empty(), "bytes behind the certificate")?;
    envelope(&certificate, now)?;
    let key = certificate.public_key();
    let key_bits = &key.subject_public_key.data;
    // Of the private key that TLS has proved: whoever copies the rest has no use for it.
    aws_lc_rs::signature::UnparsedPublicKey::new(
        &aws_lc_rs::signature::RSA_PKCS1_2048_8192_SHA256,
        key_bits,
    )
    .verify(
        certificate.tbs_certificate.as_ref(),
        &certificate.signature_value.data,
    )
    .map_err(|_| "not signed by its own key")?;

    let mut extensions = Vec::new();
    for extension in certificate.extensions() {
        demand(!extension.critical, "a critical extension")?;
        extensions.push((extension.oid.to_id_string(), extension.value));
    }
    let hash: String = hex(&sha1::Sha1::digest(key_bits));
    let mut expected = extensions.into_iter().peekable();
    let mut next = |oid: &str| {
        expected
            .next_if(|(found, _)| found == oid)
            .map(|found| found.1)
    };

    let identifier = next("2.5.29.14").ok_or("no key identifier at first")?;
    demand(
        hex(identifier) == format!("0414{hash}"),
        "a wrong key identifier",
    )?;
    let access_point = match next("1.3.6.1.4.1.4843.7.1") {
        Some(value) => Some(only_text(value)?),
        None => None,
    };
    let signed = next("1.3.6.1.4.1.4843.7.2");
    let fs_id = only_text(next("1.3.6.1.4.1.4843.7.3").ok_or("no file system id")?)?;
    let info = next("1.3.6.1.4.1.4843.7.4").ok_or("no client info")?;
    demand(expected.next().is_none(), "another extension")?;

    demand(fs_id == world.fs_id, "another file system")?;
    let mut info = Reader(info).sequence()?;
    let (source, version) = (info.text()?, info.text()?);
    info.end()?;
    demand(
        (1..=100).contains(&source.len()) && !version.is_empty(),
        "a wrong client info",
    )?;
    if let Some(point) = &access_point {
        demand(
            world.access_points.contains_key(point),
            "an access point that is not there",
        )?;
    }
    let key_id = match signed {
        Some(signed) => Some(principal(signed, &hash, world, now)?),
        None => None,
    };
    demand(
        key_id.is_some() || !world.iam_required,
        "no IAM identity, which the policy demands",
    )?;
    let serial = certificate
        .raw_serial()
        .iter()
        .fold(0, |all, byte| all << 8 | u64::from(*byte));
    Ok(Claims {
        serial,
        access_point,
        key_id,
        source,
    })
}

fn envelope(certificate: &X509Certificate<'_>, now: i64) -> Result<(), String> {
    demand(certificate.version().0 == 2, "not version 3")?;
    let (subject, issuer) = (certificate.subject(), certificate.issuer());
    demand(
        subject.as_raw() == issuer.as_raw(),
        "not self-signed by name",
    )?;
    let names: Vec<_> = subject.iter_attributes().collect();
    let [name] = names[..] else {
        return Err("not one name".to_owned());
    };
    demand(
        name.attr_type().to_id_string() == "2.5.4.3",
        "another name than the common one",
    )?;
    // UTF8String
    demand(
        name.attr_value().header.tag().0 == 12,
        "a name of another type",
    )?;
    let text = name.as_str().map_err(|why| why.to_string())?;
    demand((1..=64).contains(&text.chars().count()), "a name too long")?;
    let validity = certificate.validity();
    let (from, to) = (
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    );
    demand(to - from == BEHIND + GOOD_FOR, "a wrong period of validity")?;
    demand((from..=to).contains(&now), "not valid at this time")?;
    let key = certificate
        .public_key()
        .parsed()
        .map_err(|why| why.to_string())?;
    let x509_parser::public_key::PublicKey::RSA(rsa) = key else {
        return Err("not an RSA key".to_owned());
    };
    demand(
        rsa.key_size() == 3072 && rsa.try_exponent() == Ok(65_537),
        "another key than RSA 3072",
    )?;
    let algorithm = certificate.signature_algorithm.algorithm.to_id_string();
    demand(
        algorithm == "1.2.840.113549.1.1.11",
        "another signature than SHA-256 with RSA",
    )
}

/// The `EfsClientAuth` extension: whose it is, if the signature is right.
fn principal(signed: &[u8], hash: &str, world: &World, now: i64) -> Result<String, String> {
    let mut reader = Reader(signed);
    let mut fields = reader.sequence()?;
    reader.end()?;
    let key_id = fields.text()?;
    let signature = fields.take(0x04)?;
    let time = ascii(fields.take(0x17)?)?;
    let token = match fields.0 {
        [] => None,
        _ => {
            let mut explicit = Reader(fields.take(0xa0)?);
            let token = explicit.text()?;
            explicit.end()?;
            Some(token)
        }
    };
    fields.end()?;
    demand(signature.len() == 64, "a signature that is not 64 digits")?;
    let known = world.principals.iter().find(|known| known.key_id == key_id);
    let known = known.ok_or_else(|| format!("an unknown key {key_id}"))?;
    demand(token == known.token, "another session token")?;
    // YYMMDDHHMMSSZ → YYYYMMDDTHHMMSSZ
    demand(time.len() == 13 && time.ends_with('Z'), "a malformed time")?;
    let date = format!("20{}", &time[..6]);
    let stamp = format!("{date}T{}", &time[6..]);
    demand(
        (seconds(&stamp)? - now).abs() <= BEHIND,
        "a signature too old or too young",
    )?;

    let scope = format!("{date}/{}/elasticfilesystem/aws4_request", world.region);
    let mut query = vec![
        ("Action", "Connect".to_owned()),
        ("PublicKeyHash", hash.to_owned()),
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA256".to_owned()),
        ("X-Amz-Credential", format!("{key_id}/{scope}")),
        ("X-Amz-Date", stamp.clone()),
        ("X-Amz-Expires", "86400".to_owned()),
        ("X-Amz-SignedHeaders", "host".to_owned()),
    ];
    if let Some(token) = token {
        query.push(("X-Amz-Security-Token", token));
    }
    query.sort();
    let query: Vec<_> = query
        .into_iter()
        .map(|(name, value)| {
            let encoded: String = url::form_urlencoded::byte_serialize(value.as_bytes()).collect();
            // The form's own set keeps '*' and encodes '~'; neither occurs.
            format!("{name}={encoded}")
        })
        .collect();
    let empty = hex(&Sha256::digest(b""));
    let canonical = [
        "GET",
        "/",
        &query.join("&"),
        &format!("host:{}", world.fs_id),
        "host",
        &empty,
    ];
    let canonical = hex(&Sha256::digest(canonical.join("\n")));
    let to_sign = ["AWS4-HMAC-SHA256", &stamp, &scope, &canonical].join("\n");
    let mut key = format!("AWS4{}", known.secret).into_bytes();
    for part in [&*date, &*world.region, "elasticfilesystem", "aws4_request"] {
        key = mac(&key, part);
    }
    demand(
        hex(&mac(&key, &to_sign)).as_bytes() == signature,
        "a wrong signature",
    )?;
    Ok(key_id)
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length is a key");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn demand(holds: bool, otherwise: &str) -> Result<(), String> {
    match holds {
        true => Ok(()),
        false => Err(otherwise.to_owned()),
    }
}

/// Seconds since 1970 of `YYYYMMDDTHHMMSSZ`, day by day.
fn seconds(stamp: &str) -> Result<i64, String> {
    let part = |range: std::ops::Range<usize>| {
        stamp
            .get(range)
            .and_then(|text| text.parse::<i64>().ok())
            .ok_or("a malformed time")
    };
    let (year, month, day) = (part(0..4)?, part(4..6)?, part(6..8)?);
    let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let mut days: i64 = (1970..year).map(|year| 365 + i64::from(leap(year))).sum();
    let months = [
        31,
        28 + i64::from(leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    days += months
        .iter()
        .take(usize::try_from(month - 1).unwrap_or(12))
        .sum::<i64>()
        + day
        - 1;
    Ok(days * 86_400 + part(9..11)? * 3600 + part(11..13)? * 60 + part(13..15)?)
}

fn ascii(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "no text".to_owned())
}

fn only_text(value: &[u8]) -> Result<String, String> {
    let mut reader = Reader(value);
    let text = reader.text()?;
    reader.end()?;
    Ok(text)
}

/// Reads DER, in its shortest form only.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, tag: u8) -> Result<&'a [u8], String> {
        let wrong = || format!("no element {tag:#04x}");
        let (&found, rest) = self.0.split_first().ok_or_else(wrong)?;
        demand(found == tag, &wrong())?;
        let (&first, rest) = rest.split_first().ok_or_else(wrong)?;
        let (len, rest) = if first < 0x80 {
            (usize::from(first), rest)
        } else {
            let count = usize::from(first & 0x7f);
            demand(
                (1..=4).contains(&count) && rest.len() >= count,
                "a wrong length",
            )?;
            let (bytes, rest) = rest.split_at(count);
            let len = bytes
                .iter()
                .fold(0, |len, byte| len << 8 | usize::from(*byte));
            demand(
                len >= 0x80 && bytes[0] != 0,
                "a length that could be shorter",
            )?;
            (len, rest)
        };
        demand(rest.len() >= len, "an element that is cut")?;
        let (content, rest) = rest.split_at(len);
        self.0 = rest;
        Ok(content)
    }

    fn sequence(&mut self) -> Result<Reader<'a>, String> {
        self.take(0x30).map(Reader)
    }

    fn text(&mut self) -> Result<String, String> {
        ascii(self.take(0x0c)?)
    }

    fn end(&self) -> Result<(), String> {
        demand(self.0.is_empty(), "bytes behind the end")
    }
}
