//! Which options come from where: a file, a profile, or the name that the program was called by.

use super::option_list::{self, Typed};
use crate::mount::origins::Origin;

/// Lists of options, and the file or name that they come from; `None`: they were written for this mount.
pub(super) type Source<'a> = (Option<&'a str>, &'a [String]);

/// The origins of all options but those that were written for the mount, in the order in which they come. What
/// a profile stands for comes from the profile, wherever that is written.
pub(super) fn of(sources: &[Source<'_>]) -> Vec<Origin> {
    let mut origins: Vec<Origin> = Vec::new();
    for (source, lists) in sources {
        // What is wrong in them was said when they were read to be meant.
        let typed = option_list::read(lists, true).unwrap_or_default().typed;
        for option in &typed {
            let Some(from) = option.profile().or(*source) else {
                continue;
            };
            add(&mut origins, from, option);
        }
    }
    origins
}

fn add(origins: &mut Vec<Origin>, from: &str, option: &Typed) {
    let written = option.written();
    match origins.iter_mut().find(|origin| origin.from == from) {
        Some(origin) => origin.options.push(written),
        None => origins.push(Origin {
            from: from.to_owned(),
            options: vec![written],
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_option_has_one_origin_and_what_was_written_for_the_mount_has_none() {
        let file = ["nosuid,profile=web".to_owned(), "port=1".to_owned()];
        let own = ["nodev,acregmax=5".to_owned()];
        let origins = of(&[(Some("/etc/file"), &file), (None, &own)]);
        let from: Vec<_> = origins.iter().map(|origin| origin.from.as_str()).collect();
        assert_eq!(from, ["/etc/file", "profile=web"]);
        assert_eq!(origins[0].options, ["nosuid", "profile=web", "port=1"]);
        assert!(origins[1].options.contains(&"nocto".to_owned()));
        let all = origins.iter().flat_map(|origin| &origin.options);
        assert!(all.clone().all(|option| !own[0].contains(option.as_str())));
        assert_eq!(of(&[(None, &own)]), []);
    }

    #[test]
    fn a_profile_that_was_written_for_the_mount_is_an_origin_too() {
        let own = ["profile=db,nconnect=1".to_owned()];
        let origins = of(&[(None, &own)]);
        assert_eq!(origins.len(), 1);
        assert_eq!(origins[0].from, "profile=db");
        assert_eq!(origins[0].options.last().unwrap(), "nconnect=2");
    }
}
