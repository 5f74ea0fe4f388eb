//! The client certificate that EFS reads instead of a login.
//!
//! It is self-signed by a key that lives only in this process. What counts is
//! in four private extensions: the access point, the SigV4 signature of the
//! IAM principal, the file system, and the client's name. There is no other
//! extension but the key's identifier, and the order is fixed.
//!
//! ```text
//! 1.3.6.1.4.1.4843.7.1   UTF8String fsap-…                            accesspoint=
//!                   .2   SEQUENCE { key id, signature, time, [token] }  iam
//!                   .3   UTF8String fs-…
//!                   .4   SEQUENCE { source, version }
//! ```

use std::fmt;
use std::io;
use std::sync::Arc;

use aws_credential_types::Credentials;
use aws_lc_rs::digest;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SigningKey};

use super::clock::Utc;
use super::der;
use super::sigv4::{Connect, hex};

/// The clock of this machine may be behind by so much.
const BACKDATED: i64 = 15 * 60;
/// How long a certificate is good for, from its making.
pub(super) const LIFETIME: i64 = 3 * 3600;
/// X.520's limit of a common name.
const MAX_NAME: usize = 64;
/// What this client calls itself, unless it is told otherwise.
pub(super) const SOURCE: &str = "efs-fuse";
/// EFS takes any name that is no longer.
pub(super) const MAX_SOURCE: usize = 100;
const VERSION: &str = env!("CARGO_PKG_VERSION");

const EFS: [u32; 8] = [1, 3, 6, 1, 4, 1, 4843, 7];
const KEY_IDENTIFIER: [u32; 4] = [2, 5, 29, 14];
const COMMON_NAME: [u32; 4] = [2, 5, 4, 3];
const RSA: [u32; 7] = [1, 2, 840, 113_549, 1, 1, 1];
const SHA256_WITH_RSA: [u32; 7] = [1, 2, 840, 113_549, 1, 1, 11];

/// The key of this daemon: RSA of 3,072 bits, made once and kept in memory
/// only. All its certificates are of this key.
pub(super) struct HostKey {
    pair: RsaKeyPair,
    /// The same, for TLS.
    signing: Arc<dyn SigningKey>,
}

impl fmt::Debug for HostKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("HostKey").finish_non_exhaustive()
    }
}

impl HostKey {
    /// Makes a key. Takes some tenths of a second of computing.
    ///
    /// # Errors
    /// The machine has no randomness.
    pub(super) fn generate() -> io::Result<Self> {
        let failed = |_| io::Error::other("no RSA key could be made");
        let pair = RsaKeyPair::generate(KeySize::Rsa3072).map_err(failed)?;
        let pkcs8 = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).map_err(failed)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.as_ref().to_vec()));
        let signing = any_supported_type(&private).map_err(io::Error::other)?;
        Ok(Self { pair, signing })
    }

    /// The key's RSAPublicKey (RFC 8017 appendix A.1.1).
    fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    fn sign(&self, message: &[u8]) -> io::Result<Vec<u8>> {
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                message,
                &mut signature,
            )
            .map_err(|_| io::Error::other("the certificate could not be signed"))?;
        Ok(signature)
    }
}

/// What a certificate says about a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claims {
    /// `fs-…`
    pub(super) fs_id: String,
    /// Of the file system.
    pub(super) region: String,
    /// `fsap-…`
    pub(super) access_point: Option<String>,
    /// This machine.
    pub(super) host: String,
    /// What this client calls itself.
    pub(super) client: String,
}

impl Claims {
    /// Makes a certificate, number `serial` of this mount. With `credentials`
    /// it speaks for their principal, without for nobody.
    ///
    /// # Errors
    /// Signing fails.
    pub(super) fn certify(
        &self,
        key: &HostKey,
        credentials: Option<&Credentials>,
        at: Utc,
        serial: u64,
    ) -> io::Result<CertifiedKey> {
        let algorithm = der::sequence(&[der::oid(&SHA256_WITH_RSA), der::null()]);
        let body = self.body(key.public(), credentials, at, serial, &algorithm);
        let signature = der::bits(&key.sign(&body)?);
        let certificate = der::sequence(&[body, algorithm, signature]);
        Ok(CertifiedKey::new(
            vec![CertificateDer::from(certificate)],
            Arc::clone(&key.signing),
        ))
    }

    /// TBSCertificate (RFC 5280 section 4.1).
    fn body(
        &self,
        public_key: &[u8],
        credentials: Option<&Credentials>,
        at: Utc,
        serial: u64,
        algorithm: &[u8],
    ) -> Vec<u8> {
        let host: String = self.host.chars().take(MAX_NAME).collect();
        let name = der::sequence(&[der::set_of_one(&der::sequence(&[
            der::oid(&COMMON_NAME),
            der::utf8(&host),
        ]))]);
        let validity = der::sequence(&[
            der::utc_time(&at.shifted(-BACKDATED).utc_time()),
            der::utc_time(&at.shifted(LIFETIME).utc_time()),
        ]);
        let key_info = der::sequence(&[
            der::sequence(&[der::oid(&RSA), der::null()]),
            der::bits(public_key),
        ]);
        der::sequence(&[
            // v3
            der::explicit(0, &der::integer(2)),
            der::integer(serial),
            algorithm.to_vec(),
            name.clone(),
            validity,
            name,
            key_info,
            der::explicit(3, &self.extensions(public_key, credentials, at)),
        ])
    }

    pub(super) fn extensions(
        &self,
        public_key: &[u8],
        credentials: Option<&Credentials>,
        at: Utc,
    ) -> Vec<u8> {
        let private = |number: u32| [&EFS[..], &[number]].concat();
        let hash = public_key_hash(public_key);
        let mut all = vec![extension(&KEY_IDENTIFIER, &der::octets(&hash))];
        if let Some(access_point) = &self.access_point {
            all.push(extension(&private(1), &der::utf8(access_point)));
        }
        if let Some(credentials) = credentials {
            let connect = Connect {
                public_key_hash: &hex(&hash),
                fs_id: &self.fs_id,
                region: &self.region,
                at,
            };
            all.push(extension(&private(2), &client_auth(&connect, credentials)));
        }
        all.push(extension(&private(3), &der::utf8(&self.fs_id)));
        all.push(extension(&private(4), &client_info(&self.client, VERSION)));
        der::sequence(&all)
    }
}

/// SHA-1 of an RSAPublicKey, also the key's identifier.
fn public_key_hash(rsa_public_key: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, rsa_public_key)
        .as_ref()
        .to_vec()
}

fn extension(oid: &[u32], content: &[u8]) -> Vec<u8> {
    der::sequence(&[der::oid(oid), der::octets(content)])
}

/// `EfsClientAuth`. The signature stands in it as text.
fn client_auth(connect: &Connect<'_>, credentials: &Credentials) -> Vec<u8> {
    let (key_id, token) = (credentials.access_key_id(), credentials.session_token());
    let signature = connect.signature(key_id, credentials.secret_access_key(), token);
    let mut parts = vec![
        der::utf8(key_id),
        der::octets(signature.as_bytes()),
        der::utc_time(&connect.at.utc_time()),
    ];
    if let Some(token) = token {
        parts.push(der::explicit(0, &der::utf8(token)));
    }
    der::sequence(&parts)
}

fn client_info(source: &str, version: &str) -> Vec<u8> {
    der::sequence(&[der::utf8(source), der::utf8(version)])
}

#[cfg(test)]
mod tests {
    use super::super::sigv4::tests::{HASH, KEY_ID, NOON, SECRET, TOKEN};
    use super::*;

    /// RSAPublicKey of the key that Amazon's client has in its tests: what is
    /// in the SubjectPublicKeyInfo's BIT STRING.
    fn known_key() -> Vec<u8> {
        let spki = decode_base64(
            "MIIBojANBgkqhkiG9w0BAQEFAAOCAY8AMIIBigKCAYEArGJgJTTwefL+jHV8A9EMpX56n3ZJczM+4iPPSnledJzBcUO1VF+j6TOzy39BWBtvRjSs0nqd5wqw+1xHawhhdJF5\
             KsqMNGcP/y9fLi9Bm1vInHfQVan4NhXWh8SNbRZM1tNZV5/k+VnFur6ACHwqeWppGXkGBASL0zG0MiCbOVMkwfv/E69APVC6ljnPXBWaDuggAClYheTv5RIU4wD1c1nohRb0\
             ZHyfZjELjnqLfY0eOqY+msQXzP0eUmZXCMvUkGxi5DJnNVKhw5y96QbBRFO5ImQXpNsQmp8F9Ih1RIxNsl4csaEuK+/ZoJ68vR47oQNtPp1PjdIwcnQ3cOvOHMxulMX21Fd/\
             e9TsnqISOTOyebmYFgaHczg4JVu5lV699+7QWJm1a7M4ab0WgVVRz27J0Lx/691MZB4TbGoEIFza30/sk6uTPxAzebzCaroXzT7uA6TIRtRpxt4X9a+46GhfgR5RJfFMb8rP\
             GmaKWqA2YkTsZzRGHhbAzsJ/nEstAgMBAAE=",
        );
        // Behind the headers of the SEQUENCE, the algorithm and the BIT STRING.
        spki[24..].to_vec()
    }

    fn decode_base64(text: &str) -> Vec<u8> {
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let (mut bits, mut held, mut out) = (0_u32, 0, Vec::new());
        for byte in text.bytes().filter(|byte| *byte != b'=') {
            let six = alphabet.iter().position(|known| *known == byte);
            bits = bits << 6 | six.unwrap_or_else(|| panic!("{byte}")) as u32;
            held += 6;
            if held >= 8 {
                held -= 8;
                out.push((bits >> held) as u8);
            }
        }
        out
    }

    fn credentials(token: Option<&str>) -> Credentials {
        Credentials::new(KEY_ID, SECRET, token.map(str::to_owned), None, "test")
    }

    fn claims(access_point: Option<&str>) -> Claims {
        Claims {
            fs_id: "fs-deadbeef".to_owned(),
            region: "us-east-1".to_owned(),
            access_point: access_point.map(str::to_owned),
            host: "host".to_owned(),
            client: SOURCE.to_owned(),
        }
    }

    #[test]
    fn the_public_key_hash_is_that_of_the_official_client() {
        assert_eq!(hex(&public_key_hash(&known_key())), HASH);
    }

    #[test]
    fn the_extensions_are_byte_for_byte_those_of_the_official_client() {
        let key = known_key();
        let connect = Connect {
            public_key_hash: HASH,
            fs_id: "fs-deadbeef",
            region: "us-east-1",
            at: NOON,
        };
        assert_eq!(
            hex(&client_auth(&connect, &credentials(Some(TOKEN)))),
            "307f0c1646414b455f4157535f4143434553535f4b45595f4944044036656361633838393339336261643336333733623936626439356537626139346630363932653065343664363563356331373733616432343630653139626539170d3030303130313132303030305aa0140c1246414b455f53455353494f4e5f544f4b454e"
        );
        assert_eq!(
            hex(&client_info("unknown", "3.2.0")),
            "30100c07756e6b6e6f776e0c05332e322e30"
        );
        let all = hex(&claims(Some("fsap-0123456789abcdef0")).extensions(
            &key,
            Some(&credentials(Some(TOKEN))),
            NOON,
        ));
        // OID, OCTET STRING, content: of .1 and .3.
        for whole in [
            "06092b06010401a56b070104180c16667361702d3031323334353637383961626364656630",
            "06092b06010401a56b0703040d0c0b66732d6465616462656566",
        ] {
            assert!(all.contains(whole), "{whole} is not in {all}");
        }
    }

    #[test]
    fn what_is_not_asked_for_is_not_in_the_certificate() {
        let key = known_key();
        let numbers = |access_point, credentials: Option<&Credentials>| {
            let all = hex(&claims(access_point).extensions(&key, credentials, NOON));
            let found = |oid: &str| all.find(oid);
            let mut found: Vec<_> = [
                ("ski", "0603551d0e"),
                ("1", "06092b06010401a56b0701"),
                ("2", "06092b06010401a56b0702"),
                ("3", "06092b06010401a56b0703"),
                ("4", "06092b06010401a56b0704"),
            ]
            .into_iter()
            .filter_map(|(name, oid)| Some((found(oid)?, name)))
            .collect();
            found.sort_unstable();
            found
                .into_iter()
                .map(|(_, name)| name)
                .collect::<Vec<_>>()
                .join(" ")
        };
        let by = credentials(None);
        assert_eq!(numbers(None, None), "ski 3 4");
        assert_eq!(numbers(Some("fsap-1"), None), "ski 1 3 4");
        assert_eq!(numbers(None, Some(&by)), "ski 2 3 4");
        assert_eq!(numbers(Some("fsap-1"), Some(&by)), "ski 1 2 3 4");
    }

    #[test]
    fn another_reader_finds_in_the_certificate_what_was_meant() -> io::Result<()> {
        use x509_parser::prelude::{FromDer, X509Certificate};
        let key = HostKey::generate()?;
        let mut claims = claims(Some("fsap-0123456789abcdef0"));
        claims.host = "h".repeat(80);
        let made = claims.certify(&key, Some(&credentials(None)), NOON, 3)?;
        let (rest, read) = X509Certificate::from_der(&made.cert[0])
            .unwrap_or_else(|why| panic!("not a certificate: {why}"));
        assert!(rest.is_empty());
        assert_eq!(read.version().0, 2);
        assert_eq!(read.raw_serial(), [3]);
        assert_eq!(read.subject().to_string(), format!("CN={}", "h".repeat(64)));
        assert_eq!(read.issuer(), read.subject());
        assert_eq!(
            (
                read.validity().not_before.timestamp(),
                read.validity().not_after.timestamp()
            ),
            (946_728_000 - 900, 946_728_000 + 10_800)
        );
        assert_eq!(
            read.public_key().parsed().map(|key| key.key_size()),
            Ok(3072)
        );
        assert!(
            read.extensions()
                .iter()
                .all(|extension| !extension.critical)
        );
        assert_eq!(read.extensions().len(), 5);
        made.keys_match().map_err(io::Error::other)?;
        // The signature is the key's own over the body.
        let (body, signature) = (read.tbs_certificate.as_ref(), &read.signature_value.data);
        assert_eq!(key.sign(body)?, signature.as_ref());
        Ok(())
    }

    #[test]
    fn the_key_is_not_shown() -> io::Result<()> {
        let shown = format!("{:?}", HostKey::generate()?);
        assert_eq!(shown, "HostKey { .. }");
        let shown = format!("{:?}", credentials(Some(TOKEN)));
        assert!(!shown.contains(SECRET) && !shown.contains(TOKEN), "{shown}");
        Ok(())
    }
}
