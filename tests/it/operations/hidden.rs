//! Hidden names (`.nfs…`), as programs of the host meet them that has made them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::fixtures::World;
use crate::fixtures::process::eventually;

fn names(path: &Path) -> Vec<String> {
    fs::read_dir(path)
        .expect("readdir")
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect()
}

#[test]
fn rm_of_a_tree_whose_files_are_open_leaves_nothing_to_be_seen() {
    let world = World::new();
    let tree = world.path("a");
    fs::create_dir_all(tree.join("b/c")).expect("mkdir");
    let files: Vec<File> = ["one", "b/two", "b/c/three"]
        .into_iter()
        .map(|name| {
            fs::write(tree.join(name), name).expect("write");
            File::open(tree.join(name)).expect("open")
        })
        .collect();
    // Listed before, so that the kernel and the daemon have listings to be wrong with.
    assert_eq!(names(&tree).len(), 2);
    fs::remove_file(tree.join("one")).expect("unlink");
    assert_eq!(names(&tree), ["b"]);
    let removed = Command::new("rm")
        .arg("-r")
        .arg(&tree)
        .output()
        .expect("rm");
    let said = String::from_utf8_lossy(&removed.stderr);
    assert!(removed.status.success(), "{said}");
    assert!(names(world.mount.path()).is_empty());
    for (file, content) in files.iter().zip(["one", "b/two", "b/c/three"]) {
        let mut read = vec![0; content.len()];
        file.read_exact_at(&mut read, 0).expect("it stays readable");
        assert_eq!(read, content.as_bytes());
    }
    drop(files);
    eventually(Duration::from_secs(5), || {
        names(&world.server.export()).is_empty().then_some(())
    });
}
