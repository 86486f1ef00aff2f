//! Tables that fit the terminal.

use std::io::IsTerminal;

use crate::report::{Colour, paint};

/// Rows under a heading. The last column is cut where the terminal ends; elsewhere nothing is cut.
pub fn render(heading: &[&str], rows: &[Vec<String>]) -> String {
    let stdout = std::io::stdout();
    let width =
        rustix::termios::tcgetwinsize(&stdout).ok().map(|size| usize::from(size.ws_col)).filter(|width| *width > 0);
    layout(heading, rows, width, stdout.is_terminal())
}

fn layout(heading: &[&str], rows: &[Vec<String>], width: Option<usize>, terminal: bool) -> String {
    let columns = heading.len();
    let widest = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([heading[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(widest).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (column, cell) in cells.enumerate() {
            let pad = if column + 1 == columns { 0 } else { widths[column] + 2 };
            text.push_str(&format!("{cell:<pad$}"));
        }
        let text = text.trim_end();
        match width {
            Some(width) if text.chars().count() > width => {
                text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
            }
            _ => text.to_owned(),
        }
    };
    let mut all = paint(&line(&mut heading.iter().copied()), Colour::Bold, terminal) + "\n";
    for row in rows {
        all.push_str(&line(&mut row.iter().map(String::as_str)));
        all.push('\n');
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_column_is_cut_at_the_edge() {
        let rows =
            [vec!["web".to_owned(), "a long description".to_owned()], vec!["database".to_owned(), "short".to_owned()]];
        assert_eq!(
            layout(&["NAME", "DESCRIPTION"], &rows, Some(20), false),
            "NAME      DESCRIPTI…\nweb       a long de…\ndatabase  short\n"
        );
        assert!(layout(&["NAME", "DESCRIPTION"], &rows, None, false).contains("a long description"));
    }
}
