//! The content of a regular file: sparse pages, and for every page with
//! unstable bytes the image that a crash brings back.
//!
//! Invariant: `pages`/`size` are what clients read; replacing each page in
//! `before` and taking `stable_size` gives what is on the double's "disk".

use std::collections::BTreeMap;

const PAGE: u64 = 64 * 1024;

type Pages = BTreeMap<u64, Vec<u8>>;

#[derive(Debug, Default, Clone)]
pub(crate) struct FileData {
    size: u64,
    /// Absent pages are holes; a present page has exactly `PAGE` bytes.
    pages: Pages,
    /// Stable image of every page that holds unstable bytes (`None`: a hole).
    before: BTreeMap<u64, Option<Vec<u8>>>,
    stable_size: u64,
}

impl FileData {
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that are allocated, a multiple of the page size.
    pub(crate) fn used(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    /// True if a crash now would lose something.
    pub(crate) fn has_unstable(&self) -> bool {
        !self.before.is_empty() || self.stable_size != self.size
    }

    /// At most `count` bytes from `offset`, cut at the end of the file.
    pub(crate) fn read(&self, offset: u64, count: u32) -> Vec<u8> {
        let end = offset.saturating_add(u64::from(count)).min(self.size);
        let mut out = Vec::with_capacity(end.saturating_sub(offset) as usize);
        let mut at = offset;
        while at < end {
            let start = (at % PAGE) as usize;
            let len = (PAGE - at % PAGE).min(end - at) as usize;
            match self.pages.get(&(at / PAGE)) {
                Some(page) => out.extend_from_slice(&page[start..start + len]),
                None => out.resize(out.len() + len, 0),
            }
            at += len as u64;
        }
        out
    }

    /// Stores `data` at `offset`. Stable data also go into the image which a
    /// crash brings back.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8], stable: bool) {
        let end = offset + data.len() as u64;
        let mut at = offset;
        while at < end {
            let number = at / PAGE;
            let start = (at % PAGE) as usize;
            let len = (PAGE - at % PAGE).min(end - at) as usize;
            let part = &data[(at - offset) as usize..][..len];
            if !stable {
                self.before
                    .entry(number)
                    .or_insert_with(|| self.pages.get(&number).cloned());
            } else if let Some(image) = self.before.get_mut(&number) {
                image.get_or_insert_with(zeroed)[start..start + len].copy_from_slice(part);
            }
            self.pages.entry(number).or_insert_with(zeroed)[start..start + len]
                .copy_from_slice(part);
            at += len as u64;
        }
        if data.is_empty() {
            return;
        }
        self.size = self.size.max(end);
        if stable {
            self.stable_size = self.stable_size.max(end);
        }
    }

    /// Sets the size at once and for good, as SETATTR does.
    pub(crate) fn truncate(&mut self, size: u64) {
        cut(&mut self.pages, size);
        self.before.retain(|number, _| number * PAGE < size);
        if let Some(Some(image)) = self.before.get_mut(&(size / PAGE)) {
            image[(size % PAGE) as usize..].fill(0);
        }
        self.size = size;
        self.stable_size = size;
    }

    /// COMMIT: what overlaps the range becomes stable; `count` 0 is "to the end".
    pub(crate) fn commit(&mut self, offset: u64, count: u32) {
        let end = match count {
            0 => u64::MAX,
            n => offset.saturating_add(u64::from(n)),
        };
        self.before
            .retain(|number, _| (number + 1) * PAGE <= offset || number * PAGE >= end);
        self.stable_size = self.stable_size.max(self.size.min(end));
    }

    /// Back to the stable image. True if anything was lost.
    pub(crate) fn crash(&mut self) -> bool {
        let lost = self.has_unstable();
        for (number, image) in std::mem::take(&mut self.before) {
            match image {
                Some(page) => self.pages.insert(number, page),
                None => self.pages.remove(&number),
            };
        }
        cut(&mut self.pages, self.stable_size);
        self.size = self.stable_size;
        lost
    }
}

fn zeroed() -> Vec<u8> {
    vec![0; PAGE as usize]
}

/// Drops everything at and beyond `size`.
fn cut(pages: &mut Pages, size: u64) {
    pages.split_off(&size.div_ceil(PAGE));
    if let Some(page) = pages.get_mut(&(size / PAGE)) {
        page[(size % PAGE) as usize..].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_loses_unstable_bytes_and_keeps_stable_ones_of_the_same_page() {
        let mut data = FileData::default();
        data.write(0, b"stable", true);
        data.write(0, b"UN", false);
        data.write(4, b"LE!!", true);
        assert_eq!(data.read(0, 100), b"UNabLE!!");
        assert!(data.crash());
        assert_eq!(data.read(0, 100), b"stabLE!!");
        assert!(!data.crash());
    }

    #[test]
    fn commit_keeps_only_its_range() {
        let mut data = FileData::default();
        data.write(0, &[1; 10], false);
        data.write(3 * PAGE, &[2; 10], false);
        data.commit(0, 10);
        data.crash();
        assert_eq!(data.size(), 10);
        assert_eq!(data.read(0, 100), [1; 10]);
    }

    #[test]
    fn truncation_zeroes_what_is_exposed_again() {
        let mut data = FileData::default();
        data.write(0, &[7; 100], true);
        data.truncate(50);
        data.truncate(100);
        assert_eq!(data.read(40, 20), [[7; 10], [0; 10]].concat());
        data.write(PAGE * 2 + 5, b"x", true);
        assert_eq!(data.read(PAGE * 2, 100), b"\0\0\0\0\0x");
    }
}
