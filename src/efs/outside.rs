//! What takes bytes from outside of this machine, for the fuzz targets and for
//! `tests/it/hostile.rs`: the functions that the program has for it, and no others.
//! The program itself does not go through here.

use aws_credential_types::Credentials;

pub use super::bind::{BindReply, Generation};
pub use super::credentials::{none_found, read as container_credentials, usable};
pub use super::http::{MAX_BODY, Response, over as http_over};
pub use super::tls::{Tls, names_of, provider};
pub use super::trust::{issuers_in, verifier};

use super::certificate::{Claims, SOURCE};
use super::clock::Utc;
use super::imds::Instance;
use super::mount_targets;
use super::problem::Problem;
use super::settings::Settings;
use super::target::{FileSystem, Found, Target};

/// TLS with `target`, by which nobody but Amazon is believed.
///
/// # Errors
/// `target` has no name that a certificate could have.
pub fn tls(target: &Target) -> Result<Tls, Problem> {
    Tls::new(target, &Settings::default(), None)
}

/// What a mount of `target`, whose name does not resolve, makes of what the EFS API
/// answers to `client`.
///
/// # Errors
/// There is no mount target to use.
pub async fn mount_targets(
    client: &aws_sdk_efs::Client,
    target: &Target,
    file_system: &FileSystem,
    here: &Instance,
) -> Result<Found, Problem> {
    let targets = mount_targets::all(client, file_system).await;
    target.among(targets, here, file_system, "the name does not resolve")
}

/// The extensions of a client certificate for the principal of `credentials`, in DER.
pub fn extensions(credentials: &Credentials) -> Vec<u8> {
    let claims = Claims {
        fs_id: "fs-0123abcd".to_owned(),
        region: "eu-west-1".to_owned(),
        access_point: None,
        host: "host".to_owned(),
        client: SOURCE.to_owned(),
    };
    claims.extensions(b"a public key", Some(credentials), Utc(1_790_000_000))
}
