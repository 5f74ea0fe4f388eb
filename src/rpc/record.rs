//! Record marking on a byte stream (RFC 5531 §11).
//!
//! [`RecordReader`] takes records off a stream. Small records are cut out of a
//! staging buffer; for a large one (a READ reply) a buffer of its own is filled
//! straight from the stream, so that at most one staging buffer's worth of its
//! bytes is copied.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::buffers::Buffer;

/// The bit of a fragment header that marks the last fragment.
pub const LAST_FRAGMENT: u32 = 0x8000_0000;

/// One read from the stream asks for at most this much when it is not known
/// to be inside a large record.
const STAGING: usize = 32 * 1024;

/// Splits a stream into records.
///
/// A record longer than the limit, and a stream of empty fragments, are errors:
/// the connection is of no more use, and nothing was allocated for them.
#[derive(Debug)]
pub struct RecordReader<R> {
    stream: R,
    staged: BytesMut,
    limit: usize,
}

impl<R: AsyncRead + Unpin> RecordReader<R> {
    /// Reads records of at most `limit` bytes.
    pub fn new(stream: R, limit: usize) -> Self {
        Self {
            stream,
            staged: BytesMut::with_capacity(STAGING),
            limit,
        }
    }

    /// The next record, or `None` at the end of the stream between records.
    ///
    /// # Errors
    /// `UnexpectedEof` inside a record, `InvalidData` for a record over the
    /// limit, and whatever the stream says.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let Some(header) = self.header().await? else {
            return Ok(None);
        };
        let first = self.fragment(header & !LAST_FRAGMENT, 0).await?;
        if header & LAST_FRAGMENT != 0 {
            return Ok(Some(first));
        }
        let mut record = BytesMut::from(first.as_ref());
        let mut empty = usize::from(record.is_empty());
        loop {
            let header = self
                .header()
                .await?
                .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
            let part = self.fragment(header & !LAST_FRAGMENT, record.len()).await?;
            record.extend_from_slice(&part);
            if header & LAST_FRAGMENT != 0 {
                return Ok(Some(record.freeze()));
            }
            empty = if part.is_empty() { empty + 1 } else { 0 };
            if empty > 16 {
                return Err(invalid("a record of empty fragments"));
            }
        }
    }

    async fn header(&mut self) -> io::Result<Option<u32>> {
        while self.staged.len() < 4 {
            if self.fill().await? == 0 {
                if self.staged.is_empty() {
                    return Ok(None);
                }
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let word = self.staged.split_to(4);
        Ok(Some(u32::from_be_bytes([
            word[0], word[1], word[2], word[3],
        ])))
    }

    async fn fragment(&mut self, len: u32, before: usize) -> io::Result<Bytes> {
        let len = len as usize;
        if len.saturating_add(before) > self.limit {
            return Err(invalid("a record over the size limit"));
        }
        if len <= self.staged.len() {
            return Ok(self.staged.split_to(len).freeze());
        }
        if len <= STAGING / 2 {
            while self.staged.len() < len {
                if self.fill().await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            return Ok(self.staged.split_to(len).freeze());
        }
        let mut buffer = Buffer::with_capacity(len);
        let own = buffer.bytes();
        own.extend_from_slice(&self.staged);
        self.staged.clear();
        while own.len() < len {
            let rest = len - own.len();
            if (&mut self.stream).take(rest as u64).read_buf(own).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(buffer.freeze())
    }

    async fn fill(&mut self) -> io::Result<usize> {
        // Slices of earlier records may still share the buffer; `reserve` then
        // starts a new one and moves only the bytes not yet handed out.
        if self.staged.capacity() - self.staged.len() < STAGING / 2 {
            self.staged.reserve(STAGING);
        }
        self.stream.read_buf(&mut self.staged).await
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_all(input: &[u8], limit: usize) -> io::Result<Vec<Vec<u8>>> {
        let mut reader = RecordReader::new(input, limit);
        let mut out = Vec::new();
        while let Some(record) = reader.next().await? {
            out.push(record.to_vec());
        }
        Ok(out)
    }

    fn record(data: &[u8]) -> Vec<u8> {
        let mut out = (LAST_FRAGMENT | data.len() as u32).to_be_bytes().to_vec();
        out.extend_from_slice(data);
        out
    }

    #[tokio::test]
    async fn records_come_out_whole_however_the_stream_is_cut() {
        let big: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
        let mut input = record(b"one");
        input.extend(record(&big));
        input.extend(record(b""));
        for step in [1, 3, 5, 4096, 70_000] {
            let (mut tx, rx) = tokio::io::duplex(1 << 20);
            let data = input.clone();
            tokio::spawn(async move {
                for chunk in data.chunks(step) {
                    tokio::io::AsyncWriteExt::write_all(&mut tx, chunk)
                        .await
                        .unwrap();
                }
            });
            let mut reader = RecordReader::new(rx, 1 << 20);
            assert_eq!(reader.next().await.unwrap().unwrap(), b"one"[..]);
            assert_eq!(reader.next().await.unwrap().unwrap(), big);
            assert_eq!(reader.next().await.unwrap().unwrap(), b""[..]);
            assert!(reader.next().await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn fragments_are_joined() {
        let input = [
            &[0, 0, 0, 2, b'a', b'b'][..],
            &[0, 0, 0, 0],
            &[0x80, 0, 0, 1, b'c'],
        ]
        .concat();
        assert_eq!(read_all(&input, 100).await.unwrap(), [b"abc".to_vec()]);
    }

    #[tokio::test]
    async fn an_oversize_record_is_refused_without_waiting_for_it() {
        let error = read_all(&[0xff, 0xff, 0xff, 0xff, 0], 1 << 20)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let many = [&[0, 0, 0, 4, 1, 2, 3, 4][..], &[0x80, 0, 0, 4, 1, 2, 3, 4]].concat();
        assert!(read_all(&many, 7).await.is_err());
        assert!(read_all(&many, 8).await.is_ok());
    }

    #[tokio::test]
    async fn endless_empty_fragments_are_refused() {
        assert!(read_all(&[0; 4096], 100).await.is_err());
    }

    #[tokio::test]
    async fn the_end_of_the_stream_inside_a_record_is_an_error() {
        let error = read_all(&[0x80, 0, 0, 9, 1, 2], 100).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let error = read_all(&[0x80, 0], 100).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
