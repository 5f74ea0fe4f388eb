//! What the daemon does about its own memory: what the allocator is told before it starts
//! working, and what goes back once it works.

use std::io::{self, BufRead};
use std::ops::Range;

/// Buffers of 1 MiB come and go with every READ and WRITE. The ones in steady
/// use are pooled ([`crate::rpc::buffers`]); what a burst needs beyond that is
/// to go back to the system at once. Left to itself glibc learns from the first
/// of them to carve them out of its heaps, and keeps the memory of a full write
/// window for ever (80 MiB instead of 25, measured by `scripts/bench`).
///
/// To be called before threads exist.
pub fn tune() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets a parameter of the allocator; nobody else uses
    // it yet. A refusal leaves the default.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 512 << 10);
    }
}

/// Gives the pages of the program's text back that only the start needs: command line, options,
/// libraries that find the file system and prove who asks. What is needed again comes from the page
/// cache, or from the file, as it came the first time: text is never written.
///
/// # Errors
/// There is no `/proc`, or the kernel refuses; nothing is changed then.
pub fn give_back_text() -> io::Result<()> {
    let text = text()?;
    // SAFETY: the range is one mapping of the program's file, executable and not writable: a page
    // that is dropped is read from the file again with the bytes it had.
    match unsafe { libc::madvise(text.start as *mut _, text.len(), libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The addresses of the mapping that this function's own instructions lie in.
fn text() -> io::Result<Range<usize>> {
    let inside = text as fn() -> _ as usize;
    let maps = io::BufReader::new(std::fs::File::open("/proc/self/maps")?);
    for line in maps.lines() {
        if let Some(range) = executable(&line?)
            && range.contains(&inside)
        {
            return Ok(range);
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// The addresses of a line of proc_pid_maps(5) whose pages are executed and never written.
fn executable(line: &str) -> Option<Range<usize>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    (fields.next()? == "r-xp").then_some(())?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some(address(start)?..address(end)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_that_are_never_written_are_given_back() {
        let line = |rights| format!("559aa000-559bb000 {rights} 00012000 fe:01 1234 /usr/bin/x y");
        assert_eq!(executable(&line("r-xp")), Some(0x559a_a000..0x559b_b000));
        for rights in ["r--p", "rw-p", "rwxp", "r-xs", "---p"] {
            assert_eq!(executable(&line(rights)), None, "{rights}");
        }
        assert_eq!(executable("x-y r-xp 0 0:0 0"), None);
    }

    #[test]
    fn the_program_goes_on_without_the_text_that_it_gave_back() {
        let text = text().expect("maps");
        assert!(text.contains(&(give_back_text as fn() -> _ as usize)));
        for _ in 0..3 {
            give_back_text().expect("madvise");
        }
    }
}
