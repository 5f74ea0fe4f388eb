//! Completion for zsh and fish: clap's scripts, with what they lack put in.

use clap::Command;
use clap_complete::Shell;

use super::{LEVELS, PATHS, choices_of, takes_directory};
use crate::cli::options::{OptionSpec, TABLE, Value};

/// What clap makes for this shell.
fn generated(shell: Shell, whole: &Command) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut whole.clone(), "efs-fuse", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// A text between single quotes, as zsh and fish both read it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The script for zsh.
pub(in crate::cli) fn zsh(whole: &Command) -> String {
    let special = |text: &str| {
        let mut escaped = String::new();
        for c in text.chars() {
            if matches!(c, ':' | '[' | ']' | '\\') {
                escaped.push('\\');
            }
            escaped.push(c);
        }
        escaped
    };
    let values = TABLE.iter().map(|spec| {
        let help = special(spec.help);
        let value = match spec.value {
            Value::Needed(_) if PATHS.contains(&spec.name) => ":path:_files".to_owned(),
            Value::Needed(values) => {
                let listed = choices_of(values).map(|values| values.join(" "));
                let listed = listed.map_or_else(|| " ".to_owned(), |listed| format!("({listed})"));
                format!(":{}:{listed}", special(values))
            }
            _ => String::new(),
        };
        format!(
            "        {}",
            quoted(&format!("{}[{help}]{value}", spec.name))
        )
    });
    let values: Vec<_> = values.collect();
    let options = format!(
        "# What stands behind -o.\n_efs_fuse_options() {{\n    _values -s , 'mount option' \\\n{}\n}}\n\n",
        values.join(" \\\n")
    );
    let script = generated(Shell::Zsh, whole);
    let script = script.replace(":OPTIONS:_default", ":OPTIONS:_efs_fuse_options");
    let levels = format!("the present one is shown:({LEVELS})");
    let script = script.replace("the present one is shown:_default", &levels);
    // In front of what is run at once when the script is loaded by its name.
    match script.rfind("if [ \"$funcstack[1]\"") {
        Some(at) => [&script[..at], &options, &script[at..]].concat(),
        None => script + &options,
    }
}

/// The script for fish.
pub(in crate::cli) fn fish(whole: &Command) -> String {
    let mut whole = whole.clone();
    whole.build();
    let script = generated(Shell::Fish, &whole);
    let mut text = options_for_fish();
    for line in script.lines() {
        text.push_str(line);
        let is_options = line.contains(" -s o ") && line.ends_with(" -r");
        text.push_str(match is_options {
            true => " -f -a '(__efs_fuse_options)'\n",
            false => "\n",
        });
    }
    let commands = whole.get_subcommands().filter(|one| !one.is_hide_set());
    for command in commands.filter(|command| takes_directory(command)) {
        text.push_str(&format!(
            "complete -c efs-fuse -n \"__fish_efs_fuse_using_subcommand {}\" -f -a \"(__fish_complete_directories (commandline -ct) '')\"\n",
            command.get_name()
        ));
    }
    text.push_str(&format!(
        "complete -c efs-fuse -n \"__fish_efs_fuse_using_subcommand log-level\" -f -a '{LEVELS}'\n"
    ));
    text
}

/// The function that completes the last option of the list at the cursor.
fn options_for_fish() -> String {
    let needs = |spec: &&OptionSpec| matches!(spec.value, Value::Needed(_));
    let mut choices = String::new();
    for spec in TABLE.iter().filter(needs) {
        let Value::Needed(values) = spec.value else {
            continue;
        };
        if let Some(values) = choices_of(values) {
            choices.push_str(&format!(
                "        case '{0}=*'\n            printf '%s\\n' {{$kept}}{0}={{{1}}}\n",
                spec.name,
                values.join(",")
            ));
        }
    }
    let paths = PATHS.map(|name| format!("'{name}=*'")).join(" ");
    let names = TABLE.iter().map(|spec| {
        let equals = match spec.value {
            Value::Needed(_) => "=",
            _ => "",
        };
        let named = quoted(&format!("{}{equals}", spec.name));
        format!(
            "            printf '%s%s\\t%s\\n' $kept {named} {}\n",
            quoted(spec.help)
        )
    });
    FISH_OPTIONS
        .replace("@CHOICES@\n", &choices)
        .replace("@PATHS@", &paths)
        .replace("@NAMES@\n", &names.collect::<String>())
}

const FISH_OPTIONS: &str = r#"# What stands behind -o: the last option of the list.
function __efs_fuse_options
    set -l list (commandline -ct | string replace -r '^(-o|--options=)' '')
    # An empty list is an empty string here, not none.
    set -l kept (string replace -r '[^,]*$' '' -- "$list")
    set -l last (string replace -r '^.*,' '' -- "$list")
    switch "$last"
@CHOICES@
        case @PATHS@
            set -l name (string replace -r '=.*$' '=' -- $last)
            set -l value (string replace -r '^[^=]*=' '' -- $last)
            for path in (__fish_complete_path $value)
                printf '%s%s
' $kept$name $path
            end
        case '*=*'
        case '*'
@NAMES@
    end
end

"#;

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::arguments::Cli;

    #[test]
    fn both_scripts_ask_for_mount_options_wherever_they_can_stand() {
        let whole = Cli::command();
        let with_options = ["mount", "doctor", "du", "rm"];
        let (zsh, fish) = (zsh(&whole), fish(&whole));
        let count = |script: &str, what: &str| script.matches(what).count();
        // `mount` has it by its long name, too.
        assert_eq!(
            count(&zsh, ":OPTIONS:_efs_fuse_options"),
            with_options.len() + 1
        );
        assert_eq!(count(&zsh, "_efs_fuse_options() {"), 1);
        assert_eq!(
            count(&fish, "-a '(__efs_fuse_options)'"),
            with_options.len()
        );
        for script in [&zsh, &fish] {
            for spec in TABLE {
                assert!(script.contains(spec.name), "{}", spec.name);
            }
            assert!(script.contains(LEVELS));
        }
        for left in ["@CHOICES@", "@PATHS@", "@NAMES@"] {
            assert!(!fish.contains(left), "{left}");
        }
    }

    #[test]
    fn a_quote_ends_no_word() {
        assert_eq!(quoted("the kernel's"), "'the kernel'\\''s'");
    }
}
