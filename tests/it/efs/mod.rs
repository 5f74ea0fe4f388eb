//! EFS: a mount of the look-alike, from the device to the certificate, what
//! goes wrong on the way, and what must not be seen of it.

mod connections;
mod doctor;
mod errors;
mod identity;
mod mount_efs;
mod plaintext;
mod programs;
mod renewal;
mod secrets;
mod whole;
