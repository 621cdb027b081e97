//! Markdown that stands out while it streams: headings, bold and code get attributes. No character
//! is moved, added, removed or held back, so what is decided by the next character begins there.

use crate::text::Style;

const BOLD: &str = "1";
const CODE: &str = "36";

/// What was printed so far, as far as it matters.
#[derive(Default)]
pub struct Markdown {
    /// Whether only blanks and marks were printed in this line.
    at_start: bool,
    /// A heading, bold text or code that has begun and not ended.
    heading: bool,
    bold: bool,
    /// The number of backticks that began the code.
    code: Option<usize>,
    fenced: bool,
    /// The marks of one kind just before.
    run: Option<(char, usize)>,
    /// The last character before these marks.
    before: Option<char>,
}

impl Markdown {
    /// Returns the state at the beginning of an answer.
    pub fn new() -> Markdown {
        Markdown { at_start: true, ..Markdown::default() }
    }

    /// Returns more of the text with attributes.
    pub fn styled(&mut self, text: &str, style: Style) -> String {
        let mut out = String::with_capacity(text.len() + text.len() / 8);
        let mut part = String::new();
        let mut attribute = self.attribute(None);
        for c in text.chars() {
            self.take(c);
            let next = self.attribute(Some(c));
            if next != attribute {
                out += &painted(&std::mem::take(&mut part), attribute, style);
                attribute = next;
            }
            part.push(c);
        }
        out + &painted(&part, attribute, style)
    }

    fn attribute(&self, next: Option<char>) -> Option<&'static str> {
        let is_mark = |mark| self.run.is_some_and(|(c, _)| c == mark);
        match next {
            _ if self.fenced || self.code.is_some() || is_mark('`') => Some(CODE),
            Some('\n') => None,
            _ if self.heading || self.bold => Some(BOLD),
            _ => None,
        }
    }

    fn take(&mut self, c: char) {
        match self.run {
            Some((mark, count)) if mark == c => {
                self.run = Some((mark, count + 1));
                return;
            }
            Some((mark, count)) => self.end_run(mark, count, c),
            None => {}
        }
        self.run = None;
        if c == '\n' {
            (self.heading, self.bold, self.code, self.at_start) = (false, false, None, true);
        } else if matches!(c, '`' | '*' | '#') {
            self.run = Some((c, 1));
            return;
        } else if !c.is_whitespace() {
            self.at_start = false;
        }
        self.before = Some(c);
    }

    /// Decides what marks mean when it is known which character follows them.
    fn end_run(&mut self, mark: char, count: usize, next: char) {
        let at_start = std::mem::take(&mut self.at_start);
        match mark {
            '`' if count >= 3 && at_start => self.fenced = !self.fenced,
            _ if self.fenced => {}
            '`' => match self.code {
                Some(begun) if begun == count => self.code = None,
                Some(_) => {}
                None => self.code = Some(count).filter(|_| next != '\n'),
            },
            _ if self.code.is_some() => {}
            '#' => self.heading |= at_start && count <= 6 && next == ' ',
            _ if count < 2 => {}
            _ if self.bold => self.bold = self.before.is_some_and(char::is_whitespace),
            _ => self.bold = !next.is_whitespace(),
        }
        self.before = Some(mark);
    }
}

fn painted(text: &str, attribute: Option<&str>, style: Style) -> String {
    attribute.map_or_else(|| text.to_owned(), |attribute| style.paint(attribute, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the text with `[` and `]` around bold and `{` and `}` around code.
    fn marked(pieces: &[&str]) -> String {
        let mut markdown = Markdown::new();
        let styled: String = pieces.iter().map(|p| markdown.styled(p, Style::Color)).collect();
        let mut out = String::new();
        let mut ends = ' ';
        let mut rest = styled.split('\x1b');
        out += rest.next().unwrap();
        for part in rest {
            let (code, text) = part.split_once('m').unwrap();
            match code {
                "[1" => (out.push('['), ends = ']').0,
                "[36" => (out.push('{'), ends = '}').0,
                _ => out.push(ends),
            }
            out += text;
        }
        out.replace("][", "").replace("}{", "")
    }

    #[test]
    fn headings_bold_and_code_stand_out_however_the_text_arrives() {
        for (text, expected) in [
            ("# One\ntwo #3\n#four\n", "#[ One]\ntwo #3\n#four\n"),
            ("a **b** c", "a **[b**] c"),
            ("2 ** 3 ** 4, a*b*c", "2 ** 3 ** 4, a*b*c"),
            ("**a\nb", "**[a]\nb"),
            ("use `x` and ``y`z`` now", "use {`x`} and {``y`z``} now"),
            ("`**a**`", "{`**a**`}"),
            ("```rust\n# x\n**y**\n```\nz", "{```rust\n# x\n**y**\n```}\nz"),
            ("`open\nnext", "{`open}\nnext"),
        ] {
            let whole = marked(&[text]);
            // Where the style of marks depends on what follows, both are right.
            let pieces: Vec<String> = text.chars().map(String::from).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            assert_eq!(marked(&pieces), whole, "{text:?}");
            let plain = |text: &str| text.replace(['[', ']', '{', '}'], "");
            assert_eq!(plain(&whole), plain(text), "{text:?}");
            assert_eq!(whole, expected);
        }
        assert_eq!(Markdown::new().styled("# **x** `y`\n", Style::Plain), "# **x** `y`\n");
    }
}
