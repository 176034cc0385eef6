//! Signed requests as commands for a shell.

use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};

use axum::http::Uri;

use crate::event::Source;
use crate::signer::{Signed, Signer};

/// Prints a command for each event.
pub(crate) fn print(
    out: impl Write,
    events: u32,
    url: &Uri,
    source: &Source,
    signer: &Signer,
) -> io::Result<()> {
    let mut out = BufWriter::new(out);
    for number in 0..events {
        let event = signer.sign(&source.body(number));
        writeln!(out, "{}", command(url, &event))?;
    }
    out.flush()
}

fn command(url: &Uri, event: &Signed) -> String {
    let (input, data) = body(&event.body);
    let signature = event.token.as_ref().map_or(String::new(), |token| {
        format!(" --header 'X-Dt-Signature: {token}'")
    });
    format!(
        "{input}curl --silent --show-error --write-out ' %{{http_code}}\\n' \
         --header 'Content-Type: application/json'{signature} {data} {}",
        quoted(&url.to_string())
    )
}

/// What goes before curl, and its option, so that it sends exactly these bytes.
fn body(bytes: &[u8]) -> (String, String) {
    match str::from_utf8(bytes) {
        // What is longer, some systems refuse as an argument.
        Ok(text) if text.len() < 100_000 && !text.contains(char::is_control) => {
            (String::new(), format!("--data-raw {}", quoted(text)))
        }
        _ => {
            let octal = bytes.iter().fold(String::new(), |mut octal, byte| {
                let _ = write!(octal, "\\{byte:03o}");
                octal
            });
            (
                format!("printf '{octal}' | "),
                "--data-binary @-".to_owned(),
            )
        }
    }
}

/// As one word of a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_for_a_shell() {
        assert_eq!(quoted(r#"{"a":"$b `c` \n é"}"#), r#"'{"a":"$b `c` \n é"}'"#);
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }

    #[test]
    fn what_no_quotes_can_carry_goes_through_printf() {
        let (input, data) = body(b"a\0\n'%\\\xff");
        assert_eq!(input, r"printf '\141\000\012\047\045\134\377' | ");
        assert_eq!(data, "--data-binary @-");
    }
}
