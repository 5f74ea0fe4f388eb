//! The services of AWS that a client asks, as far as it asks: instance
//! metadata, DescribeMountTargets, AssumeRoleWithWebIdentity, container
//! credentials. One HTTP/1.1 server for all; paths tell them apart.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::{Principal, Shared};

/// What instance metadata give for a token.
const IMDS_TOKEN: &str = "imds-token-that-nobody-may-see";
const ROLE: &str = "look-alike-role";
/// A task's path at the container credential service.
pub(crate) const CREDENTIALS_URI: &str = "/v2/credentials/0123-4567";
/// The Pod Identity agent's path.
pub(crate) const POD_URI: &str = "/v1/credentials";
/// The role that the web identity token is good for.
pub(crate) const ROLE_ARN: &str = "arn:aws:iam::123456789012:role/look-alike";

struct Request {
    method: String,
    path: String,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    body: String,
}

impl Request {
    fn header(&self, name: &str) -> &str {
        let found = self
            .headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    }

    fn parameter(&self, name: &str) -> &str {
        let found = self.query.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }
}

struct Answer {
    status: u16,
    kind: &'static str,
    body: String,
    /// Further header lines.
    headers: String,
}

impl Answer {
    fn text(body: impl Into<String>) -> Self {
        Self {
            status: 200,
            kind: "text/plain",
            body: body.into(),
            headers: String::new(),
        }
    }

    fn json(body: serde_json::Value) -> Self {
        Self {
            kind: "application/json",
            ..Self::text(body.to_string())
        }
    }

    fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::text("")
        }
    }
}

/// Serves until the runtime ends.
pub(crate) async fn serve(listener: TcpListener, shared: Shared) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        tokio::spawn(async move {
            // A client that hangs up is no event.
            let _ = exchange(stream, &shared).await;
        });
    }
}

async fn exchange(stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let Some(request) = read(&mut stream).await? else {
        return Ok(());
    };
    shared
        .record()
        .requests
        .push(format!("{} {}", request.method, request.path));
    let answer = answer(&request, shared);
    let date = httpdate::fmt_http_date(SystemTime::now() + skew(shared) - BACK);
    let text = format!(
        "HTTP/1.1 {} -\r\ndate: {date}\r\ncontent-type: {}\r\ncontent-length: {}\r\nconnection: close\r\n{}\r\n{}",
        answer.status,
        answer.kind,
        answer.body.len(),
        answer.headers,
        answer.body
    );
    stream.write_all(text.as_bytes()).await?;
    stream.flush().await
}

/// Clocks may be behind, durations may not.
const BACK: std::time::Duration = std::time::Duration::from_secs(1 << 30);

fn skew(shared: &Shared) -> std::time::Duration {
    let skew = BACK.as_secs().cast_signed() + shared.world().clock;
    std::time::Duration::from_secs(skew.cast_unsigned())
}

async fn read(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: form(query),
        headers: Vec::new(),
        body: String::new(),
    };
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => {
                request
                    .headers
                    .push((name.to_owned(), value.trim().to_owned()));
            }
            None => break,
        }
    }
    let length = request.header("content-length").parse().unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    request.body = String::from_utf8_lossy(&body).into_owned();
    Ok(Some(request))
}

fn form(text: &str) -> Vec<(String, String)> {
    url::form_urlencoded::parse(text.as_bytes())
        .into_owned()
        .collect()
}

fn answer(request: &Request, shared: &Shared) -> Answer {
    let path = request.path.trim_end_matches('/');
    match (request.method.as_str(), path) {
        (_, path) if path.starts_with("/latest/") => metadata(request, path, shared),
        ("GET", "/2015-02-01/mount-targets") => mount_targets(request, shared),
        ("GET", CREDENTIALS_URI) => credentials(&shared.world().handed_out()),
        ("GET", POD_URI) => {
            let world = shared.world();
            match request.header("authorization") == world.container_token {
                true => credentials(&world.handed_out()),
                false => Answer::status(403),
            }
        }
        ("POST", "") => web_identity(request, shared),
        _ => Answer::status(404),
    }
}

fn metadata(request: &Request, path: &str, shared: &Shared) -> Answer {
    let world = shared.world();
    if path == "/latest/api/token" {
        return match (request.method.as_str(), world.imds_v2) {
            ("PUT", true) => Answer {
                headers: "x-aws-ec2-metadata-token-ttl-seconds: 300\r\n".to_owned(),
                ..Answer::text(IMDS_TOKEN)
            },
            _ => Answer::status(403),
        };
    }
    let token = request.header("x-aws-ec2-metadata-token");
    if (world.imds_v2_only && token.is_empty()) || (!token.is_empty() && token != IMDS_TOKEN) {
        return Answer::status(401);
    }
    let role = format!("/latest/meta-data/iam/security-credentials/{ROLE}");
    match path {
        "/latest/dynamic/instance-identity/document" => Answer::json(json!({
            "region": world.region,
            "availabilityZone": world.zone,
            "instanceId": "i-0123456789abcdef0",
        })),
        "/latest/meta-data/placement/availability-zone-id" => Answer::text(&*world.zone_id),
        "/latest/meta-data/placement/region" => Answer::text(&*world.region),
        "/latest/meta-data/iam/security-credentials" => Answer::text(ROLE),
        path if path == role => {
            let Principal {
                key_id,
                secret,
                token,
            } = world.handed_out();
            Answer::json(json!({
                "Code": "Success", "Type": "AWS-HMAC",
                "LastUpdated": "2026-01-01T00:00:00Z", "Expiration": expiration(),
                "AccessKeyId": key_id, "SecretAccessKey": secret, "Token": token,
            }))
        }
        _ => Answer::status(404),
    }
}

fn expiration() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    // The year is enough of a future.
    let year = 1970 + now.as_secs() / 31_556_952 + 1;
    format!("{year}-01-01T00:00:00Z")
}

fn credentials(principal: &Principal) -> Answer {
    Answer::json(json!({
        "AccessKeyId": principal.key_id,
        "SecretAccessKey": principal.secret,
        "Token": principal.token,
        "Expiration": expiration(),
        "RoleArn": ROLE_ARN,
    }))
}

fn mount_targets(request: &Request, shared: &Shared) -> Answer {
    let world = shared.world();
    let error = |status: u16, code: &str| Answer {
        status,
        headers: format!("x-amzn-errortype: {code}\r\n"),
        ..Answer::json(json!({"ErrorCode": code, "Message": format!("{code} by the look-alike")}))
    };
    if let Some((status, code)) = &world.api_error {
        return error(*status, code);
    }
    // The scope of an ordinary SigV4 signature by somebody we know.
    let scope = format!("/{}/elasticfilesystem/aws4_request", world.region);
    let signed = request.header("authorization");
    let known = world
        .principals
        .iter()
        .any(|known| signed.contains(&format!("Credential={}/", known.key_id)));
    if !known || !signed.contains(&scope) {
        return error(403, "AccessDeniedException");
    }
    if request.parameter("FileSystemId") != world.fs_id {
        return error(404, "FileSystemNotFound");
    }
    let targets: Vec<_> = world
        .mount_targets
        .iter()
        .enumerate()
        .map(|(number, target)| {
            json!({
                "OwnerId": "123456789012",
                "MountTargetId": format!("fsmt-{number:08x}"),
                "FileSystemId": world.fs_id,
                "SubnetId": format!("subnet-{number:08x}"),
                "LifeCycleState": target.state,
                "IpAddress": target.address,
                "AvailabilityZoneId": target.zone_id,
                "AvailabilityZoneName": target.zone,
                "VpcId": "vpc-1",
            })
        })
        .collect();
    Answer::json(json!({ "MountTargets": targets }))
}

fn web_identity(request: &Request, shared: &Shared) -> Answer {
    let world = shared.world();
    let fields = form(&request.body);
    let field = |name: &str| {
        let found = fields.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value.as_str())
    };
    let xml = |status: u16, body: String| Answer {
        status,
        kind: "text/xml",
        ..Answer::text(body)
    };
    if field("Action") != "AssumeRoleWithWebIdentity" {
        return Answer::status(400);
    }
    if field("WebIdentityToken") != world.web_token || field("RoleArn") != ROLE_ARN {
        return xml(
            400,
            "<ErrorResponse><Error><Type>Sender</Type><Code>InvalidIdentityToken</Code>\
             <Message>the look-alike does not know this token</Message></Error>\
             <RequestId>1</RequestId></ErrorResponse>"
                .to_owned(),
        );
    }
    let Principal {
        key_id,
        secret,
        token,
    } = world.handed_out();
    xml(
        200,
        format!(
            "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{key_id}</AccessKeyId>\
             <SecretAccessKey>{secret}</SecretAccessKey><SessionToken>{}</SessionToken>\
             <Expiration>{}</Expiration></Credentials>\
             <AssumedRoleUser><AssumedRoleId>A:efs-fuse</AssumedRoleId><Arn>{ROLE_ARN}</Arn></AssumedRoleUser>\
             </AssumeRoleWithWebIdentityResult><ResponseMetadata><RequestId>1</RequestId></ResponseMetadata>\
             </AssumeRoleWithWebIdentityResponse>",
            token.unwrap_or_default(),
            expiration()
        ),
    )
}
