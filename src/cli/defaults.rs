//! `/etc/efs-fuse/efs-fuse.conf`: options of all mounts, in front of those of each.
//!
//! It is root's word for every mount, those of root among them. So it is believed only
//! where root alone can write it; and what is wrong in it is an error of every mount, with
//! file and line: an option that was written and does not count would be worse.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::exit::Failure;
use super::option_list::{self, OptionError};
use crate::quoting;

/// Where it is.
pub(super) const PATH: &str = "/etc/efs-fuse/efs-fuse.conf";
/// Options are a few hundred bytes.
const MAX_SIZE: u64 = 64 << 10;
/// What is about one mount, or one command line.
const OF_ONE: [&str; 2] = ["remount", "sloppy"];

/// The lists of options of a command line, behind those of the file. Those of a remount
/// are alone: they change what they name.
///
/// # Errors
/// What is wrong with the file.
pub(super) fn before(lists: &[String]) -> Result<Vec<String>, Failure> {
    if option_list::names_any(lists, &["remount"]) {
        return Ok(lists.to_vec());
    }
    Ok([read()?, lists.to_vec()].concat())
}

/// The lists of the file, one a line; none if there is no file.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read() -> Result<Vec<String>, Failure> {
    read_at(Path::new(PATH), 0)
}

/// The file at `path`, which must be `owner`'s.
fn read_at(path: &Path, owner: u32) -> Result<Vec<String>, Failure> {
    let shown = quoting::path(path).to_string();
    let wrong = |why: String| Failure::usage(format_args!("reading {shown}"), why);
    // A pipe in its place is not waited for.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    let file = match file {
        Ok(file) => file,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(why) => {
            let remedy = format!("chmod 644 {shown}, as root");
            return Err(wrong(quoting::plain(&why.to_string())).remedy(remedy));
        }
    };
    let about = file.metadata().map_err(|why| wrong(why.to_string()))?;
    if !about.is_file() {
        return Err(wrong("it is no file".to_owned()).remedy(format!("remove {shown}")));
    }
    if about.uid() != owner || about.mode() & 0o022 != 0 {
        let why = format!(
            "others than root can write it (owner {}, mode {:o})",
            about.uid(),
            about.mode() & 0o7777
        );
        let remedy = format!("chown root {shown}; chmod 644 {shown}");
        return Err(wrong(why).remedy(remedy));
    }
    let text = text_of(file).map_err(|why| wrong(quoting::plain(&why.to_string())))?;
    let mut lists = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        check(line).map_err(|(why, remedy)| {
            let failure = wrong(format!("line {}: {why}", number + 1));
            failure.remedy(remedy)
        })?;
        lists.push(line.to_owned());
    }
    Ok(lists)
}

fn text_of(file: File) -> io::Result<String> {
    let mut text = String::new();
    if file.take(MAX_SIZE + 1).read_to_string(&mut text)? as u64 > MAX_SIZE {
        return Err(io::Error::other(format!(
            "it is longer than {MAX_SIZE} bytes"
        )));
    }
    Ok(text)
}

/// Whether each option of a line is right by itself. What it needs or contradicts may stand
/// in another line, or in those of a mount.
///
/// # Errors
/// What is wrong, and what would be right.
fn check(line: &str) -> Result<(), (String, String)> {
    let wrong = |why: OptionError| {
        let remedy = match &why {
            OptionError::Unknown {
                nearest: Some(nearest),
                ..
            } => nearest.clone(),
            OptionError::Unknown { .. } => "efs-fuse mount --help, which lists all".to_owned(),
            _ => "to mend the line, or to begin it with #".to_owned(),
        };
        (why.to_string(), remedy)
    };
    let list = [line];
    if let Some(name) = OF_ONE
        .iter()
        .find(|name| option_list::names_any(&list, &[**name]))
    {
        let why = format!("option {name} is about one mount, and no default of all");
        return Err((why, "to leave it out".to_owned()));
    }
    for typed in option_list::read(&list, false).map_err(wrong)?.typed {
        match option_list::mean(&[typed]) {
            Ok(_) | Err(OptionError::Lacks(..) | OptionError::Conflict(..)) => {}
            Err(why) => return Err(wrong(why)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::mount::found::effective_user;

    fn of(text: &str, mode: u32) -> Result<Vec<String>, Failure> {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("efs-fuse.conf");
        fs::write(&path, text).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
        read_at(&path, effective_user())
    }

    fn refused(text: &str, mode: u32) -> String {
        match of(text, mode) {
            Ok(lists) => panic!("{text:?} was taken for {lists:?}"),
            Err(why) => {
                assert_eq!(why.status(), 1);
                why.to_string()
            }
        }
    }

    #[test]
    fn lines_are_lists_and_comments_are_nothing() {
        let lists = of(
            "# all\n\n nosuid,nodev \n  # iam\nregion=eu-west-1\nawsprofile=x\n",
            0o644,
        );
        assert_eq!(
            lists,
            Ok(["nosuid,nodev", "region=eu-west-1", "awsprofile=x"]
                .map(str::to_owned)
                .to_vec())
        );
        let nowhere = read_at(Path::new("/nonexistent/efs-fuse.conf"), 0);
        assert_eq!(nowhere, Ok(Vec::new()));
    }

    #[test]
    fn what_is_wrong_is_told_with_file_line_and_remedy() {
        for (text, because, remedy) in [
            (
                "ro\nnosuit\n",
                "line 2: unknown option \"nosuit\"",
                ". Try: nosuid",
            ),
            (
                "\nfrobnicate",
                "line 2: unknown option",
                "--help, which lists all",
            ),
            ("port=x", "line 1: port=\"x\" is malformed", "mend the line"),
            ("port", "line 1: option port needs a value", "mend the line"),
            (
                "ro,remount",
                "line 1: option remount is about one mount",
                "leave it out",
            ),
            (
                "sloppy",
                "line 1: option sloppy is about one mount",
                "leave it out",
            ),
        ] {
            let line = refused(text, 0o644);
            assert!(line.contains("efs-fuse.conf failed: "), "{line}");
            assert!(line.contains(because) && line.contains(remedy), "{line}");
        }
    }

    #[test]
    fn a_file_that_others_can_write_or_own_is_not_believed() {
        for mode in [0o666, 0o664, 0o646] {
            let line = refused("ro", mode);
            assert!(line.contains("others than root can write it"), "{line}");
        }
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("efs-fuse.conf");
        fs::write(&path, "ro").expect("write");
        let strange = read_at(&path, effective_user() + 1);
        assert!(strange.is_err_and(|why| why.to_string().contains("chown root")));
        assert!(
            read_at(dir.path(), effective_user())
                .is_err_and(|why| why.to_string().contains("no file"))
        );
        let long = "#".repeat(MAX_SIZE as usize + 1);
        assert!(
            refused(&long, 0o644).contains("longer than"),
            "{}",
            long.len()
        );
    }

    #[test]
    fn a_remount_is_without_defaults() {
        let lists = ["ro,remount".to_owned()];
        assert_eq!(before(&lists), Ok(lists.to_vec()));
    }
}
