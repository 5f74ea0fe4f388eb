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

use super::problem::{Problem, Step};

/// Configurations of organisations with hundreds of accounts have some 100 KiB.
const MAX_SIZE: u64 = 4 << 20;
/// Group and others may write.
const WRITABLE: u32 = 0o022;

/// Both files, vetted; one that is not there is empty.
///
/// # Errors
/// One is not to be believed, or cannot be read.
pub(super) fn read(env: impl Fn(&str) -> Option<String>) -> Result<EnvConfigFiles, Problem> {
    let place = |variable: &str, name: &str| {
        let home = env("HOME").map(PathBuf::from);
        let written = env(variable).filter(|path| !path.is_empty());
        let written = written.unwrap_or_else(|| format!("~/.aws/{name}"));
        match (written.strip_prefix("~/"), home) {
            (Some(rest), Some(home)) => Some(home.join(rest)),
            (Some(_), None) => None,
            (None, _) => Some(PathBuf::from(&written)),
        }
    };
    let text = |path: Option<PathBuf>| match path {
        Some(path) => vetted(&path),
        None => Ok(String::new()),
    };
    let config = text(place("AWS_CONFIG_FILE", "config"))?;
    let credentials = text(place("AWS_SHARED_CREDENTIALS_FILE", "credentials"))?;
    Ok(files(config, credentials))
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

fn vetted(path: &Path) -> Result<String, Problem> {
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
            return Ok(String::new());
        }
        Err(why) => {
            return Err(failed(&why).remedy(
                "a HOME, or AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE, that can be read",
            ));
        }
    };
    let of = file.metadata().map_err(|why| failed(&why))?;
    if is_null(&of) {
        return Ok(String::new());
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
        Ok(_) => Ok(text),
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
        assert_eq!(vetted(Path::new("/nonexistent/config")), Ok(String::new()));
        assert_eq!(vetted(Path::new("/dev/null")), Ok(String::new()));
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
}
