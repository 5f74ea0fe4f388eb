//! The AWS configuration files (`~/.aws/config`, `~/.aws/credentials`, or where
//! `AWS_CONFIG_FILE` and `AWS_SHARED_CREDENTIALS_FILE` say), read only if nobody but
//! root and the user that this process acts as can have written them.
//!
//! A profile names programs to run (`credential_process`) and hosts to ask. Under sudo,
//! in a cron job or a container `HOME` may be somebody else's: whose file it is decides,
//! not the name that led there. The owner and the text are of the same open file, and
//! the SDK is given the text, so that nothing can be put in its place in between.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_types::os_shim_internal::{Env, Fs};

use super::problem::{Problem, Step};
use crate::quoting;

/// Configurations of organisations with hundreds of accounts have some 100 KiB.
const MAX_SIZE: u64 = 4 << 20;
/// Group and others may write.
const WRITABLE: u32 = 0o022;

/// So many of the profiles that are there are named to who wants another.
const MAX_NAMED: usize = 8;

/// Both files, as they were read.
#[derive(Debug, Clone)]
pub(super) struct Profiles {
    files: EnvConfigFiles,
    config: Place,
    credentials: Place,
}

/// Where a file is looked for.
#[derive(Debug, Clone)]
struct Place {
    /// As it was found; as it was written where that needs a `HOME` that nobody has set.
    path: PathBuf,
    /// The variable that says where it is.
    variable: &'static str,
    is_there: bool,
}

/// Both files, vetted; one that is not there is empty.
///
/// # Errors
/// One is not to be believed, or cannot be read.
pub(super) fn read(env: impl Fn(&str) -> Option<String>) -> Result<Profiles, Problem> {
    let file = |variable: &'static str, name: &str| {
        let home = env("HOME").map(PathBuf::from);
        let written = env(variable).filter(|path| !path.is_empty());
        let written = written.unwrap_or_else(|| format!("~/.aws/{name}"));
        let (path, text) = match (written.strip_prefix("~/"), home) {
            (Some(_), None) => (PathBuf::from(&written), None),
            (rest, home) => {
                let path = match (rest, home) {
                    (Some(rest), Some(home)) => home.join(rest),
                    _ => PathBuf::from(&written),
                };
                let text = vetted(&path)?;
                (path, text)
            }
        };
        let place = Place {
            path,
            variable,
            is_there: text.is_some(),
        };
        Ok((place, text.unwrap_or_default()))
    };
    let (config, of_config) = file("AWS_CONFIG_FILE", "config")?;
    let (credentials, of_credentials) = file("AWS_SHARED_CREDENTIALS_FILE", "credentials")?;
    Ok(Profiles {
        files: files(of_config, of_credentials),
        config,
        credentials,
    })
}

/// No file at all.
pub(super) fn none() -> EnvConfigFiles {
    files(String::new(), String::new())
}

fn files(config: String, credentials: String) -> EnvConfigFiles {
    EnvConfigFiles::builder()
        .with_contents(EnvConfigFileKind::Config, config)
        .with_contents(EnvConfigFileKind::Credentials, credentials)
        .build()
}

impl Profiles {
    /// For the SDK.
    pub(super) fn files(&self) -> &EnvConfigFiles {
        &self.files
    }

    /// Where the profile `name` may be written, for people.
    ///
    /// # Errors
    /// There is no such profile.
    pub(super) async fn find(&self, name: &str) -> Result<String, Problem> {
        let there: Vec<_> = [&self.config, &self.credentials]
            .into_iter()
            .filter(|place| place.is_there)
            .map(|place| quoting::path(&place.path).to_string())
            .collect();
        let there = there.join(" and ");
        match self.names().await {
            // What cannot be parsed, the SDK has words for.
            None => Ok(there),
            Some(names) if names.iter().any(|one| one == name) => Ok(there),
            Some(names) => Err(self.missing(name, &there, &names)),
        }
    }

    /// The profiles that are there.
    async fn names(&self) -> Option<Vec<String>> {
        // The texts are given: nothing is asked of a file system or an environment.
        let (nothing, unset) = (Fs::from_slice(&[]), Env::from_slice(&[]));
        let found = aws_config::profile::load(&nothing, &unset, &self.files, None);
        let found = found.await.ok()?;
        let mut names: Vec<_> = found.profiles().map(str::to_owned).collect();
        names.sort_unstable();
        Some(names)
    }

    fn missing(&self, name: &str, there: &str, names: &[String]) -> Problem {
        let (config, credentials) = (&self.config, &self.credentials);
        let shown = |place: &Place| quoting::path(&place.path).to_string();
        let named: Vec<_> = names.iter().take(MAX_NAMED).map(String::as_str).collect();
        let more = if names.len() > MAX_NAMED { ", …" } else { "" };
        let named = format!("{}{more}", named.join(", "));
        let absent = match (config.is_there, credentials.is_there) {
            (true, true) => String::new(),
            (false, true) => format!("; there is no {}", shown(config)),
            (true, false) => format!("; there is no {}", shown(credentials)),
            (false, false) => format!(
                "there is neither {} nor {}",
                shown(config),
                shown(credentials)
            ),
        };
        let read = match (there, names) {
            ("", _) => String::new(),
            (there, []) => format!("there is no profile in {there}"),
            (there, _) => format!("there is no such profile in {there}, only {named}"),
        };
        let home = config.path.starts_with("~") || credentials.path.starts_with("~");
        let unset = if home { ", and HOME is not set" } else { "" };
        let quoted = quoting::plain(name);
        let problem = Problem::new(
            Step::Credentials,
            format_args!("getting AWS credentials of profile {quoted}"),
            format_args!("{read}{absent}{unset}"),
        );
        let written = format!(
            "write [profile {quoted}] into {} or [{quoted}] into {}",
            shown(config),
            shown(credentials)
        );
        let others = match names {
            [] => String::new(),
            _ => format!(", or -o awsprofile= with one that is there ({named})"),
        };
        problem.remedy(format_args!(
            "{written}{others}; HOME, {} and {} say which files are read",
            config.variable, credentials.variable
        ))
    }
}

/// The text of a file; `None` if it is not there.
fn vetted(path: &Path) -> Result<Option<String>, Problem> {
    let failed = |why: &dyn std::fmt::Display| {
        let what = format!("reading the AWS configuration file {}", path.display());
        Problem::new(Step::Credentials, what, why)
    };
    let mut options = File::options();
    // It may be a FIFO, or a terminal.
    options
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = match options.open(path) {
        Ok(file) => file,
        Err(why)
            if matches!(
                why.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(why) => {
            return Err(failed(&why).remedy(
                "a HOME, or AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE, that can be read",
            ));
        }
    };
    let of = file.metadata().map_err(|why| failed(&why))?;
    if is_null(&of) {
        return Ok(Some(String::new()));
    }
    if let Some(why) = distrust(&of, user()) {
        return Err(failed(&why).remedy(format_args!(
            "chown root {0} and chmod go-w {0}, if what is in it is yours; or another HOME",
            path.display()
        )));
    }
    let mut text = String::new();
    // The SDK's words would quote what it read.
    match file.take(MAX_SIZE + 1).read_to_string(&mut text) {
        Ok(_) if text.len() as u64 > MAX_SIZE => Err(failed(&"it is too long")),
        Ok(_) => Ok(Some(text)),
        Err(why) => Err(failed(&why)),
    }
}

fn user() -> u32 {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() }
}

/// `/dev/null`, which everybody may write and which says nothing.
fn is_null(file: &Metadata) -> bool {
    file.file_type().is_char_device() && file.rdev() == libc::makedev(1, 3)
}

/// Why a file is not to be believed by `user`.
fn distrust(file: &Metadata, user: u32) -> Option<String> {
    if !file.is_file() {
        return Some("it is no regular file".to_owned());
    }
    let owner = file.uid();
    if owner != 0 && owner != user {
        return Some(format!(
            "it belongs to user {owner}, who could have any program run as user {user} by it"
        ));
    }
    if file.mode() & WRITABLE != 0 {
        return Some(format!(
            "others than its owner may write it (mode {:o})",
            file.mode() & 0o7777
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(dir: &tempfile::TempDir, mode: u32) -> PathBuf {
        let path = dir.path().join("config");
        std::fs::write(&path, "[default]\n").expect("write");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("mode");
        path
    }

    #[test]
    fn a_file_is_believed_if_root_or_the_user_owns_it_and_nobody_else_writes() {
        let dir = tempfile::tempdir().expect("directory");
        let of = |mode, user| distrust(&file(&dir, mode).metadata().expect("stat"), user);
        let own = user();
        assert_eq!(of(0o600, own), None);
        assert_eq!(of(0o644, own), None);
        for mode in [0o620, 0o602, 0o666] {
            let why = of(mode, own);
            assert!(why.is_some_and(|why| why.contains("may write")));
        }
        if own != 0 {
            assert!(of(0o600, own + 1).is_some_and(|why| why.contains("belongs to")));
        }
    }

    #[test]
    fn a_refusal_names_the_file_and_the_way_out() {
        let dir = tempfile::tempdir().expect("directory");
        let path = file(&dir, 0o666);
        let shown = path.display().to_string();
        let env = |name: &str| (name == "AWS_CONFIG_FILE").then(|| shown.clone());
        let Err(problem) = read(env) else {
            panic!("believed");
        };
        assert!(problem.what.contains(&shown), "{problem:?}");
        let remedy = problem.remedy.unwrap_or_default();
        assert!(remedy.contains("chmod go-w"), "{remedy}");
    }

    #[test]
    fn what_is_not_there_and_dev_null_are_empty_and_a_fifo_does_not_hang() {
        assert_eq!(vetted(Path::new("/nonexistent/config")), Ok(None));
        assert_eq!(vetted(Path::new("/dev/null")), Ok(Some(String::new())));
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("fifo");
        let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).expect("name");
        // SAFETY: the name is a C string that lives through the call.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let refused = vetted(&path);
        assert!(refused.is_err_and(|why| why.why.contains("no regular file")));
    }

    #[test]
    fn home_is_where_the_environment_says() {
        let dir = tempfile::tempdir().expect("directory");
        std::fs::create_dir(dir.path().join(".aws")).expect("directory");
        std::fs::create_dir(dir.path().join(".aws/config")).expect("directory");
        let home = dir.path().display().to_string();
        let refused = read(|name| (name == "HOME").then(|| home.clone()));
        assert!(refused.is_err_and(|why| why.what.contains("/.aws/config")));
        assert!(read(|_| None).is_ok());
    }

    /// What is said of the profile `name` where `HOME` has these files.
    async fn told(name: &str, files: &[(&str, &str)]) -> Result<String, (String, String)> {
        let dir = tempfile::tempdir().expect("directory");
        std::fs::create_dir(dir.path().join(".aws")).expect("directory");
        for (name, text) in files {
            std::fs::write(dir.path().join(".aws").join(name), text).expect("write");
        }
        let home = dir.path().display().to_string();
        let read = read(|name| (name == "HOME").then(|| home.clone())).expect("believed");
        let short = |text: String| text.replace(&home, "H");
        let found = read.find(name).await;
        found.map(short).map_err(|problem| {
            (
                short(problem.why),
                short(problem.remedy.unwrap_or_default()),
            )
        })
    }

    #[tokio::test]
    async fn a_profile_that_is_not_there_is_told_with_the_files_that_were_read_and_their_profiles()
    {
        let (config, credentials) = ("[default]\n[profile web]\nregion=a\n", "[db]\n");
        let both = [("config", config), ("credentials", credentials)];
        for name in ["web", "default", "db"] {
            let there = told(name, &both).await;
            assert_eq!(there.as_deref(), Ok("H/.aws/config and H/.aws/credentials"));
        }
        for (files, expected) in [
            (
                &both[..],
                "there is no such profile in H/.aws/config and H/.aws/credentials, only db, default, web",
            ),
            (
                &both[..1],
                "there is no such profile in H/.aws/config, only default, web; there is no H/.aws/credentials",
            ),
            (
                &[("credentials", "")],
                "there is no profile in H/.aws/credentials; there is no H/.aws/config",
            ),
            (&[], "there is neither H/.aws/config nor H/.aws/credentials"),
        ] {
            let (why, remedy) = told("nobody", files).await.expect_err("there");
            assert_eq!(why, expected);
            let write =
                "write [profile nobody] into H/.aws/config or [nobody] into H/.aws/credentials";
            assert!(remedy.starts_with(write), "{remedy}");
            assert!(remedy.contains("AWS_CONFIG_FILE"), "{remedy}");
            assert_eq!(
                remedy.contains("(default, web)"),
                files.len() == 1 && files[0].0 == "config"
            );
        }
        let (why, _) = read(|_| None)
            .expect("nothing")
            .find("x")
            .await
            .map_err(|it| (it.why, it.what))
            .expect_err("there");
        assert_eq!(
            why,
            "there is neither '~/.aws/config' nor '~/.aws/credentials', and HOME is not set"
        );
        // What the SDK cannot parse, it has words for.
        assert!(told("x", &[("config", "[default\n")]).await.is_ok());
    }
}
