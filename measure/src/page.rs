//! The report as one HTML page that needs nothing else: the template holds style
//! and drawing, the data is put into it as JSON.

use crate::Report;
use serde_json::Value;

const TEMPLATE: &str = include_str!("page.html");
/// Where the data goes.
const PLACE: &str = "\"DATA\"";

/// The page.
pub fn page(report: &Report) -> serde_json::Result<String> {
    let mut data = serde_json::to_value(report)?;
    data["sentence"] = report.place.sentence().into();
    // The kernel's messages are in the JSON form; no figure shows them.
    for mode in data["modes"].as_array_mut().into_iter().flatten() {
        if let Value::Object(mode) = mode {
            mode.remove("log");
        }
    }
    Ok(TEMPLATE.replacen(PLACE, &embedded(&data.to_string()), 1))
}

/// JSON that is JavaScript as well, and that no text in it can leave: `<` begins
/// every tag and comment of HTML, and the separators end JavaScript's lines.
fn embedded(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::sample;

    #[test]
    fn the_page_needs_nothing_else() {
        let page = page(&sample()).unwrap();
        for outside in
            ["http:", "https:", "src=", "href=", "url(", "@import", "fetch(", "XMLHttpRequest"]
        {
            let found = page.matches(outside).count();
            // The name of SVG's elements is no address.
            let names = page.matches("http://www.w3.org/2000/svg").count();
            let allowed = if outside == "http:" { names } else { 0 };
            assert_eq!(found, allowed, "{outside}");
        }
        assert!(TEMPLATE.len() < 24 << 10, "{} bytes", TEMPLATE.len());
    }

    #[test]
    fn no_text_can_leave_the_data() {
        let page = page(&sample()).unwrap();
        assert!(!page.contains("<script>alert"), "a reason is no script");
        assert_eq!(page.matches("</script").count(), TEMPLATE.matches("</script").count());
        assert!(page.contains("\\u003c/script\\u003e"));
        // And it is still the same data.
        let start = page.find("const report = ").unwrap() + "const report = ".len();
        let json = page[start..].split(";\n").next().unwrap();
        let data: Value = serde_json::from_str(json).unwrap();
        assert_eq!(data["modes"][1]["name"], "pv");
        assert_eq!(data["modes"][0]["boot"]["milestones"][1]["note"], "<b>&");
    }

    #[test]
    fn an_emulated_host_is_marked() {
        let page = page(&sample()).unwrap();
        assert!(page.contains("emulated host (QEMU's TCG)"));
    }
}
