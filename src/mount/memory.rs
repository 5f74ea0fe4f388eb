//! What the daemon does about its own memory: what the allocator is told before it starts
//! working, and what goes back once it works.

use std::io;
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

/// Gives the pages of the program and its libraries back that are never written, text and constants:
/// what only the start needs, or what was done last (command line, options, libraries that find the
/// file system and prove who asks), takes no memory then. What is needed again comes from the page
/// cache, or from the file, as it came the first time.
///
/// It allocates nothing.
///
/// # Errors
/// The kernel refuses; what it has refused stays where it is.
pub fn give_back_program() -> io::Result<()> {
    let mut done = Ok(());
    for_each_object(&mut |object| {
        for pages in constants(object) {
            // SAFETY: the pages are of a loaded object's segment that is not writable: one that is
            // dropped is read from the file again with the bytes it had.
            if unsafe { libc::madvise(pages.start as *mut _, pages.len(), libc::MADV_DONTNEED) }
                != 0
            {
                done = Err(io::Error::last_os_error());
            }
        }
    });
    done
}

/// Gives back what the allocator holds and nobody uses.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it locks what it looks at, and touches only what is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Calls `each` with the program and every library that is loaded.
fn for_each_object(each: &mut dyn FnMut(&libc::dl_phdr_info)) {
    unsafe extern "C" fn call(
        object: *mut libc::dl_phdr_info,
        _: libc::size_t,
        each: *mut libc::c_void,
    ) -> libc::c_int {
        // SAFETY: the loader passes an object that lives through the call, and what it was given.
        unsafe { (*each.cast::<&mut dyn FnMut(&libc::dl_phdr_info)>())(&*object) };
        0
    }
    let mut each = each;
    // SAFETY: `call` uses what it is given as what it is, and keeps nothing of it.
    unsafe {
        libc::dl_iterate_phdr(Some(call), (&raw mut each).cast());
    }
}

/// The whole pages of an object's segments that are loaded from its file and never written. Those
/// that the loader has written before it made them read-only (RELRO) are of a writable segment, and
/// not among them.
fn constants(object: &libc::dl_phdr_info) -> impl Iterator<Item = Range<usize>> {
    let base = object.dlpi_addr as usize;
    let headers = match object.dlpi_phdr.is_null() || is_of_the_kernel(object) {
        true => &[][..],
        // SAFETY: so many program headers are there, for as long as the object is loaded.
        false => unsafe { std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) },
    };
    headers.iter().filter_map(move |header| {
        let is_constant = header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
        let start = base + header.p_vaddr as usize;
        let pages = whole_pages(start..start + header.p_filesz as usize, page_size());
        (is_constant && !pages.is_empty()).then_some(pages)
    })
}

/// The object that the kernel maps into every process is no file.
fn is_of_the_kernel(object: &libc::dl_phdr_info) -> bool {
    // SAFETY: the loader's names are C strings.
    let name = unsafe { std::ffi::CStr::from_ptr(object.dlpi_name) };
    name.to_bytes().starts_with(b"linux-")
}

/// The pages that lie in this range with all their bytes.
fn whole_pages(range: Range<usize>, size: usize) -> Range<usize> {
    let start = range.start.next_multiple_of(size);
    start..(range.end / size * size).max(start)
}

fn page_size() -> usize {
    // SAFETY: sysconf has no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(64 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that `give_back_program` would give back.
    fn given_back() -> Vec<Range<usize>> {
        let mut all = Vec::new();
        for_each_object(&mut |object| all.extend(constants(object)));
        all
    }

    #[test]
    fn the_pages_of_a_range_are_those_that_are_in_it_whole() {
        assert_eq!(whole_pages(0x1000..0x3000, 0x1000), 0x1000..0x3000);
        assert_eq!(whole_pages(0x1001..0x3fff, 0x1000), 0x2000..0x3000);
        assert!(whole_pages(0x1001..0x1fff, 0x1000).is_empty());
        assert!(whole_pages(0x1001..0x2fff, 0x1000).is_empty());
    }

    #[test]
    fn only_pages_that_are_never_written_are_given_back() {
        let all = given_back();
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("maps of this process");
        let mut seen = 0;
        let mut within = false;
        for line in maps.lines() {
            if let Some((range, rest)) = line.split_once(' ')
                && let Some((start, end)) = range.split_once('-')
                && let (Ok(start), Ok(end)) = (
                    usize::from_str_radix(start, 16),
                    usize::from_str_radix(end, 16),
                )
            {
                within = all.iter().any(|of| of.start < end && start < of.end);
                seen += usize::from(within);
                assert!(!within || !rest.starts_with("rw"), "{line}");
            }
            if within && line.starts_with("Private_Dirty:") {
                assert!(line.ends_with(" 0 kB"), "pages were written: {line}");
            }
        }
        assert!(seen > 0, "the program's own text is among them");
    }

    #[test]
    fn the_program_goes_on_without_the_pages_that_it_gave_back() {
        let own = give_back_program as fn() -> _ as usize;
        assert!(given_back().iter().any(|pages| pages.contains(&own)));
        for _ in 0..3 {
            give_back_program().expect("madvise");
            trim();
        }
    }
}
