//! The signature in an EFS client certificate.
//!
//! It is AWS Signature Version 4 over a made-up request, `GET / Action=Connect`,
//! that binds the credentials to the key pair of the certificate by the hash of
//! its public key. One thing is not as the standard has it: no empty line
//! stands between the headers and their list. A stock signer makes signatures
//! that EFS does not accept.

use aws_lc_rs::{digest, hmac};

use super::clock::Utc;

/// The service that the signature is for.
const SERVICE: &str = "elasticfilesystem";
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// Of the request; how long EFS believes a certificate is its own business.
const EXPIRES: u32 = 86_400;

/// What is signed: who connects to which file system with which key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Connect<'a> {
    /// SHA-1 of the public key in lower-case hexadecimal.
    pub(super) public_key_hash: &'a str,
    /// `fs-…`
    pub(super) fs_id: &'a str,
    /// Of the file system.
    pub(super) region: &'a str,
    /// When.
    pub(super) at: Utc,
}

impl Connect<'_> {
    fn scope(&self) -> String {
        format!("{}/{}/{SERVICE}/aws4_request", self.at.date(), self.region)
    }

    /// The request in its canonical form.
    fn canonical(&self, key_id: &str, token: Option<&str>) -> String {
        let credential = encoded(&format!("{key_id}/{}", self.scope()));
        let token = token.map_or_else(String::new, |token| {
            format!("&X-Amz-Security-Token={}", encoded(token))
        });
        format!(
            "GET\n/\n\
             Action=Connect&PublicKeyHash={}&X-Amz-Algorithm={ALGORITHM}&X-Amz-Credential={credential}\
             &X-Amz-Date={}&X-Amz-Expires={EXPIRES}{token}&X-Amz-SignedHeaders=host\n\
             host:{}\nhost\n{}",
            self.public_key_hash,
            self.at.basic(),
            self.fs_id,
            sha256(b""),
        )
    }

    fn string_to_sign(&self, canonical: &str) -> String {
        format!(
            "{ALGORITHM}\n{}\n{}\n{}",
            self.at.basic(),
            self.scope(),
            sha256(canonical.as_bytes())
        )
    }

    fn sign(&self, secret: &str, text: &str) -> String {
        let mut key = format!("AWS4{secret}").into_bytes();
        for part in [&*self.at.date(), self.region, SERVICE, "aws4_request"] {
            key = mac(&key, part);
        }
        hex(&mac(&key, text))
    }

    /// The signature: 64 hexadecimal digits in lower case.
    pub(super) fn signature(&self, key_id: &str, secret: &str, token: Option<&str>) -> String {
        self.sign(secret, &self.string_to_sign(&self.canonical(key_id, token)))
    }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As a form writes values: everything but RFC 3986's unreserved characters by
/// number, a space as `+`.
fn encoded(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            b' ' => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::efs) const KEY_ID: &str = "FAKE_AWS_ACCESS_KEY_ID";
    pub(in crate::efs) const SECRET: &str = "FAKE_AWS_SECRET_ACCESS_KEY";
    pub(in crate::efs) const TOKEN: &str = "FAKE_SESSION_TOKEN";
    pub(in crate::efs) const NOON: Utc = Utc(946_728_000);
    pub(in crate::efs) const HASH: &str = "d9c2a68f2c4de49982e310d95e539a89abd6bc13";

    fn connect(public_key_hash: &str) -> Connect<'_> {
        Connect {
            public_key_hash,
            fs_id: "fs-deadbeef",
            region: "us-east-1",
            at: NOON,
        }
    }

    // The values of these tests are those of Amazon's own client for the same input.

    #[test]
    fn the_canonical_request_is_that_of_the_official_client() {
        let expected = "GET\n/\nAction=Connect&PublicKeyHash=fake_public_key_hash&X-Amz-Algorithm=AWS4-HMAC-SHA256\
            &X-Amz-Credential=FAKE_AWS_ACCESS_KEY_ID%2F20000101%2Fus-east-1%2Felasticfilesystem%2Faws4_request\
            &X-Amz-Date=20000101T120000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host\n\
            host:fs-deadbeef\nhost\ne3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let connect = connect("fake_public_key_hash");
        assert_eq!(connect.canonical(KEY_ID, None), expected);
        let with_token = expected.replace(
            "&X-Amz-SignedHeaders",
            "&X-Amz-Security-Token=FAKE_SESSION_TOKEN&X-Amz-SignedHeaders",
        );
        assert_eq!(connect.canonical(KEY_ID, Some(TOKEN)), with_token);
    }

    #[test]
    fn each_step_of_signing_is_that_of_the_official_client() {
        let connect = connect(HASH);
        assert_eq!(
            connect.string_to_sign("canonical_request"),
            "AWS4-HMAC-SHA256\n20000101T120000Z\n20000101/us-east-1/elasticfilesystem/aws4_request\n\
             572b1e335109068b81e4def81524c5fe5d0e385143b5656cbf2f7c88e5c1a51e"
        );
        assert_eq!(
            connect.sign(SECRET, "string_to_sign"),
            "6aa643803d4a1b07c5ac87bff96347ef28dab1cb5a5c5d63969c90ca11454c4a"
        );
        for (token, canonical, signature) in [
            (
                None,
                "ffbd83907f0f517fff1d703e17ffbe7eac76fac318334e6764a80cf1bf42bc1e",
                "2dac14f3502501eb8f8c7b31489f10ae208309303262228d02ab1db77b19d985",
            ),
            (
                Some(TOKEN),
                "e7d4cf8cc49eba46358d4bba8d3d88bb982455602211c8a0692296a198f8ee04",
                "6ecac889393bad36373b96bd95e7ba94f0692e0e46d65c5c1773ad2460e19be9",
            ),
        ] {
            assert_eq!(
                sha256(connect.canonical(KEY_ID, token).as_bytes()),
                canonical
            );
            assert_eq!(connect.signature(KEY_ID, SECRET, token), signature);
        }
    }

    #[test]
    fn a_token_is_encoded_as_in_a_form() {
        let connect = connect(HASH);
        let token = Some("IQoJb3/+= tok");
        assert!(
            connect
                .canonical(KEY_ID, token)
                .contains("&X-Amz-Security-Token=IQoJb3%2F%2B%3D+tok&")
        );
        assert_eq!(
            connect.signature(KEY_ID, SECRET, token),
            "1027ddfd0ba3a52cb2a660f9d62d01b7e99eb4d0fe822c135902bc5cfeb4a81f"
        );
    }
}
