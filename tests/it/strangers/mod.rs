//! What other users of the machine, and the names they choose, can do to root and to
//! each other: nothing. Each test is an attack that once succeeded.

mod files;
mod names;
mod registry;
mod search;
