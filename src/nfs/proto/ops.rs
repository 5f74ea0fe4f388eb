//! Operation numbers (RFC 8881 §18) and the constants of their arguments.

use super::status::Status;

macro_rules! ops {
    ($($name:ident = $number:literal, $wire:literal;)*) => {
        /// An operation of COMPOUND.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        #[allow(missing_docs)] // the names are the RFC's
        pub enum Op {
            $($name = $number,)*
        }

        impl Op {
            /// The RFC's name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $wire,)*
                }
            }

            /// The operation with this number.
            pub fn of(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

ops! {
    Access = 3, "ACCESS";
    Close = 4, "CLOSE";
    Commit = 5, "COMMIT";
    Create = 6, "CREATE";
    GetAttr = 9, "GETATTR";
    GetFh = 10, "GETFH";
    Link = 11, "LINK";
    Lock = 12, "LOCK";
    LockT = 13, "LOCKT";
    LockU = 14, "LOCKU";
    Lookup = 15, "LOOKUP";
    LookupP = 16, "LOOKUPP";
    NVerify = 17, "NVERIFY";
    Open = 18, "OPEN";
    OpenDowngrade = 21, "OPEN_DOWNGRADE";
    PutFh = 22, "PUTFH";
    PutRootFh = 24, "PUTROOTFH";
    Read = 25, "READ";
    ReadDir = 26, "READDIR";
    ReadLink = 27, "READLINK";
    Remove = 28, "REMOVE";
    Rename = 29, "RENAME";
    RestoreFh = 31, "RESTOREFH";
    SaveFh = 32, "SAVEFH";
    SetAttr = 34, "SETATTR";
    Verify = 37, "VERIFY";
    Write = 38, "WRITE";
    BindConnToSession = 41, "BIND_CONN_TO_SESSION";
    ExchangeId = 42, "EXCHANGE_ID";
    CreateSession = 43, "CREATE_SESSION";
    DestroySession = 44, "DESTROY_SESSION";
    FreeStateId = 45, "FREE_STATEID";
    Sequence = 53, "SEQUENCE";
    TestStateId = 55, "TEST_STATEID";
    DestroyClientId = 57, "DESTROY_CLIENTID";
    ReclaimComplete = 58, "RECLAIM_COMPLETE";
}

impl Op {
    /// This status, although it ends the compound, is one of the two answers to what the
    /// operation asks, and no failure: NVERIFY's "it is the same", VERIFY's "it is not", LOCKT's
    /// "somebody has locked it".
    pub fn is_answered_by(self, status: Status) -> bool {
        matches!(
            (self, status),
            (Self::NVerify, Status::SAME)
                | (Self::Verify, Status::NOT_SAME)
                | (Self::LockT, Status::DENIED)
        )
    }
}

/// OPEN4_SHARE_ACCESS_READ.
pub const ACCESS_READ: u32 = 1;
/// OPEN4_SHARE_ACCESS_WRITE.
pub const ACCESS_WRITE: u32 = 2;
/// OPEN4_SHARE_ACCESS_WANT_NO_DELEG: we have no back channel to recall one.
pub const WANT_NO_DELEG: u32 = 0x400;
/// OPEN4_RESULT_PRESERVE_UNLINKED: the server keeps a removed file until the
/// last CLOSE.
pub const PRESERVE_UNLINKED: u32 = 8;

/// ACCESS4_READ.
pub const CAN_READ: u32 = 0x01;
/// ACCESS4_LOOKUP.
pub const CAN_LOOKUP: u32 = 0x02;
/// ACCESS4_MODIFY.
pub const CAN_MODIFY: u32 = 0x04;
/// ACCESS4_EXTEND.
pub const CAN_EXTEND: u32 = 0x08;
/// ACCESS4_EXECUTE.
pub const CAN_EXECUTE: u32 = 0x20;

/// How an OPEN finds its file (open_claim4).
#[derive(Clone, Copy, Debug)]
pub enum Claim<'a> {
    /// CLAIM_NULL: this name in the current directory.
    Name(&'a [u8]),
    /// CLAIM_FH: the current file.
    Handle,
    /// CLAIM_PREVIOUS: the current file, which was open before the server
    /// restarted.
    Previous,
}

/// What an OPEN does about creation (openflag4).
#[derive(Clone, Debug)]
pub enum Create<'a> {
    /// Open only what exists.
    No,
    /// UNCHECKED4: create, or open what exists.
    Unchecked(&'a super::attrs::NewAttributes),
    /// EXCLUSIVE4_1: create, and tell a retry from somebody else's file by the
    /// verifier.
    Exclusive(super::types::Verifier, &'a super::attrs::NewAttributes),
}

/// What CREATE makes (createtype4).
#[derive(Clone, Copy, Debug)]
pub enum Make<'a> {
    /// A directory.
    Directory,
    /// A symbolic link to this text.
    Symlink(&'a [u8]),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A block device: major, minor.
    Block(u32, u32),
    /// A character device: major, minor.
    Char(u32, u32),
}

/// nfs_lock_type4. The waiting kinds tell the server that the client will ask
/// again, so that it may keep its turn (RFC 8881 §9.6); it answers at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LockType {
    /// READ_LT.
    Read = 1,
    /// WRITE_LT.
    Write = 2,
    /// READW_LT.
    ReadWaiting = 3,
    /// WRITEW_LT.
    WriteWaiting = 4,
}

/// In whose name a LOCK is asked for (locker4).
#[derive(Clone, Copy, Debug)]
pub enum Locker {
    /// The first lock of an owner on a file.
    New {
        /// The open it is made with.
        open: super::types::StateId,
        /// The client id.
        client: u64,
        /// The owner.
        owner: u64,
    },
    /// An owner who has a lock state on the file.
    Known(super::types::StateId),
}
