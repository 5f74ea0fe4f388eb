//! The EFS look-alike as one command; see `tests/it/lookalike`. `scripts/demo --efs` runs
//! it in a network namespace where the real addresses are.

#[path = "../tests/it/lookalike/mod.rs"]
mod lookalike;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;
use tokio::net::TcpListener;

use lookalike::{Principal, Shared, World, front, pki, services};

/// Be an EFS file system and the AWS around it.
#[derive(Debug, Parser)]
struct Arguments {
    /// The file system
    #[arg(long, default_value = "fs-f223e6bb")]
    fs: String,
    /// Its region
    #[arg(long, default_value = "eu-west-1")]
    region: String,
    /// The NFS server behind it
    #[arg(long)]
    backend: SocketAddr,
    /// An access point and the NFS server that exports its root
    #[arg(long, value_name = "FSAP=ADDRESS")]
    access_point: Vec<String>,
    /// Where the mount target listens
    #[arg(long)]
    mount_target: SocketAddr,
    /// Where the services listen
    #[arg(long)]
    http: Vec<SocketAddr>,
    /// Its issuer's certificate is written here
    #[arg(long)]
    ca: PathBuf,
    /// The policy demands an IAM identity
    #[arg(long)]
    iam_required: bool,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let mut world = World::new(&arguments.fs, &arguments.region, arguments.backend);
    world.iam_required = arguments.iam_required;
    world.tls_required = true;
    world.imds_v2_only = true;
    // Of the instance's role, and of nobody else.
    world.principals.push(Principal {
        key_id: "ASIALOOKALIKE0000001".to_owned(),
        secret: "look-alike-secret-that-nobody-may-see".to_owned(),
        token: Some("look-alike-token-that-nobody-may-see".to_owned()),
    });
    for point in &arguments.access_point {
        let (id, address) = point.split_once('=').expect("FSAP=ADDRESS");
        let address = address.parse().expect("an address");
        world.access_points.insert(id.to_owned(), address);
    }
    let name = format!("{}.efs.{}.amazonaws.com", world.fs_id, world.region);
    let authority = pki::Authority::new();
    let leaf = authority.issue(&[&name]);
    let shared = Shared::new(world);
    for address in &arguments.http {
        let listener = TcpListener::bind(address).await.expect("listen");
        tokio::spawn(services::serve(listener, shared.clone()));
    }
    let listener = TcpListener::bind(arguments.mount_target)
        .await
        .expect("listen");
    // Last: who waits for it may go on.
    std::fs::write(&arguments.ca, authority.pem()).expect("write the issuer's certificate");
    let told = tokio::spawn(tell(shared.clone()));
    front::serve(listener, leaf, shared, Arc::new(front::Cut::new(0))).await;
    told.abort();
}

/// Says on stdout what clients showed.
async fn tell(shared: Shared) {
    let (mut seen, mut refused) = (0, 0);
    loop {
        tokio::time::sleep(front::SOON).await;
        let record = shared.record();
        for claims in &record.seen[seen..] {
            println!(
                "accepted: {} certificate {} by {}, {}, {}",
                claims.tls,
                claims.serial,
                claims.source,
                claims.key_id.as_deref().map_or_else(
                    || "no IAM identity".to_owned(),
                    |id| format!("signed by {id}")
                ),
                claims.access_point.as_deref().unwrap_or("no access point"),
            );
        }
        for why in &record.refused[refused..] {
            println!("refused: {why}");
        }
        (seen, refused) = (record.seen.len(), record.refused.len());
    }
}
