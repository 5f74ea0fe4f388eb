//! At home on a machine: mount(8), fstab, systemd, packages, and what can be
//! seen of a running mount. What needs a booted system is in `scripts/boot-test`.

mod completion;
mod defaults;
mod files;
mod helper;
mod namespace;
mod observe;
mod ports;
mod privileges;
mod trees;
mod watchdog;
