//! Completion, made from the command line as clap knows it and from the table of mount
//! options.
//!
//! clap's own script for bash completes nothing behind a subcommand (clap-rs/clap#6421), so
//! the whole is ours. Those for zsh and fish ([`others`]) are clap's, and complete what it
//! does not know: what stands behind `-o`, and what is a directory.

mod others;

use clap::{Arg, ArgAction, Command, ValueEnum, ValueHint};

use super::arguments::CacheAction;
use super::options::{TABLE, Value};

pub(super) use others::{fish, zsh};

/// Mount options whose value is a path.
const PATHS: [&str; 6] = ["cache", "cafile", "jwtpath", "log", "netns", "metrics"];
/// Levels of a log, as `log-level` takes them.
const LEVELS: &str = "error warn info debug trace";

/// The script.
pub(super) fn bash(whole: &Command) -> String {
    let mut whole = whole.clone();
    whole.build();
    let commands = || whole.get_subcommands().filter(|one| !one.is_hide_set());
    let names: Vec<_> = commands().map(Command::get_name).collect();
    let mut cases = String::new();
    for command in commands() {
        cases.push_str(&format!("    {})\n", command.get_name()));
        cases.push_str(&format!("        flags='{}'\n", flags(command).join(" ")));
        let valued = valued(command);
        if !valued.is_empty() {
            cases.push_str(&format!("        valued='{}'\n", valued.join(" ")));
        }
        if takes_directory(command) {
            cases.push_str("        paths=yes\n");
        }
        if command.get_name() == "log-level" {
            cases.push_str(&format!("        words='{LEVELS}'\n"));
        }
        if command.get_name() == "cache" {
            let words = CacheAction::value_variants().iter();
            let words = words.filter_map(CacheAction::to_possible_value);
            let words: Vec<_> = words.map(|word| word.get_name().to_owned()).collect();
            cases.push_str(&format!("        words='{}'\n", words.join(" ")));
        }
        if command.get_name() == "help" {
            cases.push_str(&format!("        words='{}'\n", names.join(" ")));
        }
        cases.push_str("        ;;\n");
    }
    let (mut options, mut choices) = (Vec::new(), String::new());
    for spec in TABLE {
        let (equals, values) = match spec.value {
            Value::Needed(values) => ("=", values),
            _ => ("", ""),
        };
        options.push(format!("{}{equals}", spec.name));
        if let Some(values) = choices_of(values) {
            let values = values.join(" ");
            choices.push_str(&format!("    {}) echo '{values}' ;;\n", spec.name));
        }
    }
    let paths = PATHS.map(|name| format!("{name}=*")).join(" | ");
    TEMPLATE
        .replace("@PATHS@", &paths)
        .replace("@COMMANDS@", &names.join(" "))
        .replace("@GENERAL@", &flags(&whole).join(" "))
        .replace("@CASES@\n", &cases)
        .replace("@OPTIONS@", &options.join(" "))
        .replace("@CHOICES@\n", &choices)
}

/// Whether one of its arguments is a directory.
fn takes_directory(command: &Command) -> bool {
    let mut arguments = command.get_arguments();
    arguments.any(|one| one.is_positional() && one.get_value_hint() == ValueHint::DirPath)
}

/// The values of an option that has these for its placeholder, if they can be counted: what
/// is written in small letters is to be written so.
fn choices_of(placeholder: &str) -> Option<Vec<&str>> {
    let small = |c: u8| c.is_ascii_lowercase() || c == b'|';
    let counted = placeholder.contains('|') && placeholder.bytes().all(small);
    counted.then(|| placeholder.split('|').collect())
}

/// `-o`, `--options`, …
fn written(argument: &Arg) -> impl Iterator<Item = String> {
    let short = argument.get_short().map(|short| format!("-{short}"));
    let long = argument.get_long().map(|long| format!("--{long}"));
    short.into_iter().chain(long)
}

fn flags(command: &Command) -> Vec<String> {
    let arguments = command.get_arguments().filter(|one| !one.is_hide_set());
    arguments.flat_map(written).collect()
}

/// Those that another word follows.
fn valued(command: &Command) -> Vec<String> {
    let takes = |one: &&Arg| {
        matches!(one.get_action(), ArgAction::Set | ArgAction::Append)
            && !one.is_positional()
            && !one.is_require_equals_set()
    };
    command
        .get_arguments()
        .filter(takes)
        .flat_map(written)
        .collect()
}

/// What is alike for all commands. Words are taken from the line itself: bash divides it at
/// `=` and `:` as well, and replaces only what is behind the last of them.
const TEMPLATE: &str = r#"# Completion of efs-fuse for bash. Made by efs-fuse generate completions.

_efs_fuse_choices() {
    case $1 in
@CHOICES@
    esac
}

# What stands behind -o: the last option of the list $1.
_efs_fuse_options() {
    local last=${1##*,} name value word
    # What is in front of the last option in the word that bash replaces.
    local kept=${cur%"${cur##*,}"}
    case $last in
    @PATHS@) compopt -o default ;;
    *=*)
        name=${last%%=*} value=${last#*=}
        while IFS= read -r word; do
            COMPREPLY+=("$word")
        done < <(compgen -W "$(_efs_fuse_choices "$name")" -- "$value")
        ;;
    *)
        compopt -o nospace
        while IFS= read -r word; do
            COMPREPLY+=("$kept$word")
        done < <(compgen -W '@OPTIONS@' -- "$last")
        ;;
    esac
}

_efs_fuse() {
    local cur=${COMP_WORDS[COMP_CWORD]} line=${COMP_LINE:0:COMP_POINT}
    local -a before
    local current previous command='' flags='' valued='' paths='' words='' word
    [ "$cur" != = ] && [ "$cur" != : ] || cur=''
    # The word that the cursor is in or behind, as the shell will see it, and those before.
    current=${line##*[[:space:]]}
    read -r -a before <<<"${line%"$current"}"
    previous=${before[${#before[@]} - 1]}
    for word in "${before[@]:1}"; do
        case $word in
        -*) ;;
        *)
            command=$word
            break
            ;;
        esac
    done
    COMPREPLY=()
    case $command in
    '')
        while IFS= read -r word; do
            COMPREPLY+=("$word")
        done < <(compgen -W '@COMMANDS@ @GENERAL@' -- "$current")
        return
        ;;
@CASES@
    esac
    case " $valued " in
    *" $previous "*)
        case $previous in
        -o | --options) _efs_fuse_options "$current" ;;
        --mount-namespace | --listen) compopt -o default ;;
        esac
        return
        ;;
    esac
    case $current in
    -*) words=$flags paths='' ;;
    esac
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <(compgen -W "$words" -- "$current")
    # bash quotes what it finds by itself.
    if [ -n "$paths" ] && [ ${#COMPREPLY[@]} = 0 ]; then
        compopt -o dirnames
    fi
}

complete -F _efs_fuse efs-fuse
"#;

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::arguments::Cli;

    #[test]
    fn every_command_that_is_shown_is_in_the_script_with_its_flags() {
        let script = bash(&Cli::command());
        for words in [
            "    mount)\n",
            "--foreground",
            "--json",
            "lookupcache=",
            "all positive none complete",
        ] {
            assert!(script.contains(words), "{words}: {script}");
        }
        assert!(!script.contains("take-over") && !script.contains("keeper"));
        for left in [
            "@PATHS@",
            "@CASES@",
            "@OPTIONS@",
            "@CHOICES@",
            "@COMMANDS@",
            "@GENERAL@",
        ] {
            assert!(!script.contains(left), "{left}");
        }
    }
}
