//! Names as a person and a shell can read them, whatever is in them.
//!
//! The form is that of `ls --quoting-style=shell-escape` (GNU coreutils): a name of
//! harmless characters stands as it is, one with blanks or characters of the shell in
//! quotes, and control characters and bytes that are no UTF-8 as `$'\n'` and `$'\377'`.
//! What comes out has no control character, is one line, and given to a shell is the name
//! again.
//!
//! One thing is stricter than in `ls`: characters that are not seen but change how others
//! are (Unicode's format characters, such as U+202E, which turns the direction of what
//! follows it) are escaped too, except the few that words are written with.
//!
//! Text that is no name, such as another program's message, is made harmless by [`plain`].
//!
//! Any layer may quote; this module calls nobody.

use std::fmt::{self, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Shows a path, or any name, quoted where it needs to be.
#[derive(Debug, Clone, Copy)]
pub struct Quoted<'a>(&'a [u8]);

/// A path, for a message.
pub fn path(path: &Path) -> Quoted<'_> {
    Quoted(path.as_os_str().as_bytes())
}

/// Bytes that name something, for a message.
pub fn name(name: &(impl AsRef<[u8]> + ?Sized)) -> Quoted<'_> {
    Quoted(name.as_ref())
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = Kind::of(self.0);
        match (kind.bare, kind.single_quote && kind.fits_double) {
            (true, _) => write_lossless(out, self.0),
            (false, true) => {
                out.write_char('"')?;
                write_lossless(out, self.0)?;
                out.write_char('"')
            }
            (false, false) => write_escaped(out, self.0),
        }
    }
}

/// Text on one line and without control characters: a line break is ` | `, what a
/// terminal would obey is shown as `\x1b` or `\u{202e}`.
pub fn plain(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => shown.push_str(" | "),
            c if is_printable(c) => shown.push(c),
            c if u32::from(c) < 0x100 => {
                let _ = write!(shown, "\\x{:02x}", u32::from(c));
            }
            c => {
                let _ = write!(shown, "\\u{{{:x}}}", u32::from(c));
            }
        }
    }
    shown
}

/// A piece of a name: a character, or a byte that begins none.
#[derive(Clone, Copy)]
enum Piece<'a> {
    Printable(char),
    Escaped(&'a [u8]),
}

fn pieces(name: &[u8]) -> impl Iterator<Item = Piece<'_>> {
    name.utf8_chunks().flat_map(|chunk| {
        let valid = chunk.valid();
        let chars = valid.char_indices().map(move |(at, c)| {
            if is_printable(c) {
                Piece::Printable(c)
            } else {
                Piece::Escaped(&valid.as_bytes()[at..at + c.len_utf8()])
            }
        });
        chars.chain((!chunk.invalid().is_empty()).then(|| Piece::Escaped(chunk.invalid())))
    })
}

/// What kind of quotes a name needs.
struct Kind {
    bare: bool,
    single_quote: bool,
    /// Nothing in it means anything between double quotes.
    fits_double: bool,
}

impl Kind {
    fn of(name: &[u8]) -> Self {
        let mut kind = Self {
            bare: !name.is_empty(),
            single_quote: false,
            fits_double: true,
        };
        for (at, piece) in pieces(name).enumerate() {
            let Piece::Printable(c) = piece else {
                kind.bare = false;
                kind.fits_double = false;
                continue;
            };
            match c {
                '\'' => {
                    kind.bare = false;
                    kind.single_quote = true;
                }
                ' ' => kind.bare = false,
                // Special at the beginning, or alone.
                '#' | '~' if at == 0 => kind.bare = false,
                '{' | '}' if name.len() == 1 => kind.bare = false,
                '!' | '"' | '$' | '&' | '(' | ')' | '*' | ';' | '<' | '=' | '>' | '[' | '^'
                | '`' | '|' | '?' | '\\' => {
                    kind.bare = false;
                    kind.fits_double = false;
                }
                '#' | '~' | '{' | '}' => kind.fits_double = false,
                _ => {}
            }
        }
        kind
    }
}

/// Writes a name of printable characters only.
fn write_lossless(out: &mut fmt::Formatter<'_>, name: &[u8]) -> fmt::Result {
    pieces(name).try_for_each(|piece| match piece {
        Piece::Printable(c) => out.write_char(c),
        Piece::Escaped(_) => Ok(()),
    })
}

/// `'a'$'\n''b'`: single quotes, left for what only the other kind can say.
fn write_escaped(out: &mut fmt::Formatter<'_>, name: &[u8]) -> fmt::Result {
    out.write_char('\'')?;
    let mut escaping = false;
    for piece in pieces(name) {
        match piece {
            Piece::Printable('\'') => {
                out.write_str("'\\''")?;
                escaping = false;
            }
            Piece::Printable(c) => {
                if std::mem::take(&mut escaping) {
                    out.write_str("''")?;
                }
                out.write_char(c)?;
            }
            Piece::Escaped(bytes) => {
                if !std::mem::replace(&mut escaping, true) {
                    out.write_str("'$'")?;
                }
                bytes.iter().try_for_each(|byte| match byte {
                    7 => out.write_str("\\a"),
                    8 => out.write_str("\\b"),
                    9 => out.write_str("\\t"),
                    10 => out.write_str("\\n"),
                    11 => out.write_str("\\v"),
                    12 => out.write_str("\\f"),
                    13 => out.write_str("\\r"),
                    byte => write!(out, "\\{byte:03o}"),
                })?;
            }
        }
    }
    out.write_char('\'')
}

/// A character that a terminal shows and does not obey.
fn is_printable(c: char) -> bool {
    match c {
        // Soft hyphen, and the joiners of scripts and of emoji.
        '\u{ad}' | '\u{200c}' | '\u{200d}' => true,
        '\u{2028}' | '\u{2029}' => false,
        c if c.is_control() => false,
        // Blanks of other widths.
        c if c.is_whitespace() => true,
        // The standard library's table has neither what is not assigned nor format
        // characters. Behind a letter, where marks that combine with it are in place.
        c if c.is_ascii() => true,
        c => {
            let shown = ['a', c].iter().collect::<String>();
            shown.escape_debug().eq(shown.chars())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ffi::OsStr;
    use std::process::Command;

    use super::*;

    fn quoted(bytes: &[u8]) -> String {
        name(bytes).to_string()
    }

    /// Names of one, two and three characters of those that mean something somewhere.
    fn names() -> Vec<Vec<u8>> {
        let alphabet: [&[u8]; 22] = [
            b"a",
            b"'",
            b"\"",
            b" ",
            b"\n",
            b"\x1b",
            b"\\",
            b"$",
            b"#",
            b"~",
            b"{",
            b"!",
            b"?",
            b"\xff",
            b"\xc3",
            "ä".as_bytes(),
            "\u{2028}".as_bytes(),
            "日".as_bytes(),
            b"=",
            b"\t",
            b"-",
            b"^",
        ];
        let mut names: Vec<Vec<u8>> = (1..=255_u8).map(|byte| vec![byte]).collect();
        for one in alphabet {
            for two in alphabet {
                names.push([one, two].concat());
                for three in alphabet {
                    names.push([one, two, three].concat());
                }
            }
        }
        for more in [
            "it's",
            "it's $HOME",
            "a{b}",
            "e\u{301}",
            "\u{a0}",
            "\u{1F468}\u{200d}\u{1F469}",
            "\u{ad}",
            "\u{378}",
            "\u{85}",
            "x\u{301}\u{302}",
            "שלום",
            "a\nb\nc'd",
            "\u{10ffff}x",
        ] {
            names.push(more.as_bytes().to_vec());
        }
        names.retain(|name| !name.contains(&b'/') && name != b".");
        names.sort();
        names.dedup();
        names
    }

    #[test]
    fn names_are_quoted_as_the_machines_ls_does() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut names = names();
        // Of a name with a single quote that ends in what must be escaped, ls (9.1) begins
        // with what belongs to the end: with two quotes too many, or with another name.
        let escaped = |name: &[u8]| matches!(pieces(name).last(), Some(Piece::Escaped(_)));
        names.retain(|name| !(name.contains(&b'\'') && escaped(name)));
        for name in &names {
            std::fs::write(dir.path().join(OsStr::from_bytes(name)), "").expect("write");
        }
        let mut ls = Command::new("ls");
        ls.args(["-A", "-U", "-1", "--zero", "--quoting-style=shell-escape"]);
        let ls = ls.env("LC_ALL", "C.UTF-8").current_dir(dir.path()).output();
        let ls = ls.expect("ls of GNU coreutils");
        assert!(
            ls.status.success(),
            "{}",
            String::from_utf8_lossy(&ls.stderr)
        );
        let said = ls.stdout.split(|&byte| byte == 0);
        let theirs: BTreeSet<_> = said
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .filter(|name| !name.is_empty())
            .collect();
        let ours: BTreeSet<_> = names.iter().map(|name| quoted(name)).collect();
        let wrong: Vec<_> = ours.symmetric_difference(&theirs).take(20).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        assert_eq!(ours.len(), names.len());
    }

    #[test]
    fn a_shell_reads_the_name_again() {
        for name in names().chunks(500) {
            let words: Vec<_> = name.iter().map(|name| quoted(name)).collect();
            let script = format!("printf '%s\\0' {}", words.join(" "));
            let shell = Command::new("bash")
                .args(["-c", &script])
                .output()
                .expect("bash");
            let read: Vec<_> = shell.stdout.split(|&byte| byte == 0).collect();
            let wrong = (name.iter().zip(&read)).find(|(name, read)| name[..] != read[..]);
            assert_eq!(wrong, None, "{read:?}");
            assert_eq!(read.len(), name.len() + 1);
        }
    }

    #[test]
    fn nothing_that_turns_or_hides_text_is_shown_raw() {
        for c in [
            '\u{202e}',
            '\u{2066}',
            '\u{200e}',
            '\u{feff}',
            '\u{e0041}',
            '\u{9b}',
            '\u{7f}',
        ] {
            let shown = quoted(c.to_string().as_bytes());
            assert!(shown.is_ascii() && shown.starts_with("''$'\\"), "{shown}");
            assert!(plain(&c.to_string()).is_ascii());
        }
        assert_eq!(quoted(b""), "''");
        assert_eq!(plain("a\nb\u{1b}[2J\u{202e}ä"), "a | b\\x1b[2J\\u{202e}ä");
    }
}
