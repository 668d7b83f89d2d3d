//! Redis's protocol, as much of it as a client needs that asks one thing after the other on one connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Longest answer that is taken.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A number.
    Number(i64),
    /// A word or some bytes.
    Bytes(Vec<u8>),
    /// Nothing of that name.
    Nothing,
}

/// One TCP connection.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects; every answer then has to come within `patience`.
    ///
    /// # Errors
    /// Nobody answers there.
    pub fn open(address: SocketAddr, patience: Duration) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, patience)
            .with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// The connection ends, the answer is late, is an error, or is not Redis's.
    pub fn ask<W: AsRef<[u8]>>(&mut self, words: &[W]) -> Result<Answer> {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            let word = word.as_ref();
            request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            request.extend_from_slice(word);
            request.extend_from_slice(b"\r\n");
        }
        self.stream.get_mut().write_all(&request).context("cannot send")?;
        answer(&mut self.stream)
    }
}

fn answer(stream: &mut impl BufRead) -> Result<Answer> {
    let line = line(stream)?;
    let (kind, rest) = line.split_at_checked(1).context("an empty answer")?;
    match kind {
        ":" => Ok(Answer::Number(rest.parse().context("not a number")?)),
        "+" => Ok(Answer::Bytes(rest.as_bytes().to_vec())),
        "-" => bail!("redis says: {rest}"),
        "$" if rest == "-1" => Ok(Answer::Nothing),
        "$" => {
            let length: usize = rest.parse().context("not a length")?;
            if length > MAX_ANSWER_BYTES {
                bail!("an answer of {length} bytes is more than this client takes");
            }
            let mut bytes = vec![0; length + 2];
            stream
                .read_exact(&mut bytes)
                .context("the connection ended in an answer")?;
            bytes.truncate(length);
            Ok(Answer::Bytes(bytes))
        }
        other => bail!("{other:?} begins no answer that this client knows"),
    }
}

fn line(stream: &mut impl BufRead) -> Result<String> {
    let mut line = Vec::new();
    let read = stream.by_ref().take(64 << 10).read_until(b'\n', &mut line);
    match read.context("no answer")? {
        0 => Err(io::Error::from(io::ErrorKind::ConnectionReset)).context("the server closed the connection"),
        _ => match line.strip_suffix(b"\r\n") {
            Some(line) => Ok(String::from_utf8(line.to_vec())?),
            None => bail!("an answer's line has no end"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Answer> {
        answer(&mut io::Cursor::new(bytes))
    }

    #[test]
    fn each_kind_of_answer_is_understood() {
        assert_eq!(read(b":42\r\n").unwrap(), Answer::Number(42));
        assert_eq!(read(b"+OK\r\n").unwrap(), Answer::Bytes(b"OK".to_vec()));
        assert_eq!(
            read(b"$3\r\na\r\n\r\n").unwrap(),
            Answer::Bytes(b"a\r\n".to_vec())
        );
        assert_eq!(read(b"$-1\r\n").unwrap(), Answer::Nothing);
    }

    #[test]
    fn errors_and_cuts_are_errors() {
        for bad in [
            &b"-ERR no\r\n"[..],
            b"",
            b":4",
            b"$9\r\nab\r\n",
            b"$99999999999\r\n",
            b"?\r\n",
            b"\r\n",
        ] {
            assert!(read(bad).is_err(), "{bad:?} was taken for an answer");
        }
    }
}
