//! `profile=`: sets of options for what a volume is used for, each by its name.
//!
//! A profile stands for its members, at its place in the list: of two that say the same the
//! later counts, as everywhere, so what is written behind a profile wins over it. None has an
//! option that says how to find the server, or who may do what.

/// A name, and the options that it stands for, as they are written.
type Profile = (&'static str, &'static [&'static str]);

/// All of them. README.md says why each has what it has; a test compares.
pub(super) const PROFILES: &[Profile] = &[
    (
        "ci",
        &[
            "nocto",
            "lookupcache=complete",
            "acregmin=60",
            "acregmax=600",
            "acdirmin=60",
            "acdirmax=600",
        ],
    ),
    (
        "db",
        &["hard", "lock", "cto", "lookupcache=all", "nconnect=2"],
    ),
    (
        "home",
        &[
            "hard",
            "lock",
            "cto",
            "lookupcache=all",
            "acregmax=30",
            "acdirmin=10",
            "acdirmax=30",
        ],
    ),
    (
        "ml",
        &[
            "nocto",
            "lookupcache=complete",
            "acregmin=60",
            "acregmax=3600",
            "acdirmin=60",
            "acdirmax=3600",
            "max_connections=5",
        ],
    ),
    (
        "web",
        &[
            "nocto",
            "lookupcache=complete",
            "acregmin=10",
            "acregmax=30",
            "acdirmin=10",
            "acdirmax=30",
        ],
    ),
];

/// What a profile stands for.
///
/// # Errors
/// There is none of this name: which there are.
pub(super) fn members(name: &str) -> Result<&'static [&'static str], String> {
    let found = PROFILES.iter().find(|(known, _)| *known == name);
    found.map(|(_, members)| *members).ok_or_else(|| {
        let names: Vec<_> = PROFILES.iter().map(|(name, _)| *name).collect();
        format!("expected one of {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::super::option_list::{mean, read};
    use super::*;

    const README: &str = include_str!("../../README.md");

    #[test]
    fn each_profile_is_made_of_options_that_can_be_meant_together() {
        for (name, members) in PROFILES {
            let list = members.join(",");
            let spelt = mean(&read(&[list], false).unwrap().typed).unwrap();
            let named = mean(&read(&[format!("profile={name}")], false).unwrap().typed).unwrap();
            assert_eq!(named, spelt, "{name}");
        }
    }

    #[test]
    fn the_readme_has_the_profiles_that_there_are() {
        for (name, members) in PROFILES {
            let row = format!("| `profile={name}` | `{}` |", members.join(","));
            assert!(README.contains(&row), "README.md lacks {row}");
        }
    }
}
