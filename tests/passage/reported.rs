//! Reports to look at: the page needs nothing but itself, and says what the numbers say.

use lowprec::compare;

use crate::networks::{digits, images, static_digits};

#[test]
fn a_page_stands_alone() {
    let float = digits("digits_residual");
    let (test, labels) = images("test");
    let report = compare(&float, &static_digits(&float), &test, Some(&labels)).unwrap();
    let page = report.to_html("digits <residual> & \"more\"");
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    for outside in ["http", "<script", "<link", "@import", "url(", "src="] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("digits &lt;residual&gt; &amp; &quot;more&quot;") && page.contains("prefers-color-scheme:dark"));
    let [before, after] = report.accuracy().unwrap();
    assert!(page.contains(&format!("{:.2} %", 100.0 * after)) && page.contains(&format!("{:.2} % in float", 100.0 * before)));
    // A row of the table for each layer, a bar for each that makes an error, a drawing for each that has weights.
    assert_eq!(page.matches("<th scope=\"row\">").count(), report.layers.len());
    let noisy = report.layers.iter().filter(|layer| layer.isolated.is_none_or(|own| own.errors.sqnr_db.is_finite())).count();
    assert_eq!(page.matches("<rect class=\"o\"").count(), noisy);
    // Three charts along the network; size, time and both energies before and after.
    assert_eq!((page.matches("class=\"plot\"").count(), page.matches("<rect class=\"w\"").count()), (3, 4));
    let drawn = report.layers.iter().map(|layer| usize::from(layer.weights.is_some()) + usize::from(layer.values.is_some()));
    assert_eq!(page.matches("class=\"h\"").count(), drawn.sum::<usize>());
    // Every element that is opened is closed.
    for element in ["div", "table", "tr", "td", "svg", "figure", "p", "span", "main", "h2"] {
        let (opened, closed) = (
            page.matches(&format!("<{element}>")).count() + page.matches(&format!("<{element} ")).count(),
            page.matches(&format!("</{element}>")).count(),
        );
        assert_eq!(opened, closed, "{element}");
    }
    // With what a layer takes, 200 of them stay below a megabyte.
    assert!(page.len() / report.layers.len() < 5000, "{} bytes for {} layers", page.len(), report.layers.len());
}

#[test]
fn weights_and_values_lie_within_their_codes() {
    let float = digits("digits_cnn");
    let (test, _) = images("test");
    let report = compare(&float, &static_digits(&float), test.slice(0, 0..64).unwrap(), None).unwrap();
    for layer in report.layers.iter().filter(|layer| layer.kernel.is_some()) {
        let weights = layer.weights.as_ref().unwrap();
        assert_eq!((weights.codes, weights.step), ([-127.0, 127.0], 1.0), "{}", layer.name);
        // By the largest weight of each channel: nothing lies beyond the last code.
        let beyond = weights.counts[..4].iter().chain(&weights.counts[60..]).sum::<u64>();
        assert_eq!(beyond, 0, "{}: {weights:?}", layer.name);
        if let (Some(values), Some(range)) = (&layer.values, layer.range) {
            let outside = values.counts[..5].iter().chain(&values.counts[59..]).sum::<u64>() as f64 / values.total() as f64;
            assert!(outside <= range.clipped + 1e-9, "{}: {outside} {range:?}", layer.name);
        }
    }
}

#[cfg(feature = "serde")]
#[test]
fn reports_and_configurations_are_json() {
    use lowprec::QConfig;
    use lowprec::convert::LayerConfig;
    let float = digits("digits_cnn");
    let (test, labels) = images("test");
    let report = compare(&float, &static_digits(&float), test.slice(0, 0..64).unwrap(), Some(&labels[..64])).unwrap();
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["samples"], 64);
    assert_eq!(json["layers"].as_array().unwrap().len(), report.layers.len());
    assert_eq!(json["layers"][0]["name"], report.layers[0].name);
    assert!(json["layers"].as_array().unwrap().iter().any(|layer| layer["kind"] == "Conv2d" && layer["precision"] == "Int8"));
    let config = QConfig::least_squares()
        .with_kind(lowprec::LayerKind::Linear, LayerConfig::Dynamic(Default::default()))
        .with_pattern("head.*", LayerConfig::Float)
        .unwrap();
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<QConfig>(&text).unwrap(), config);
    assert!(serde_json::from_str::<QConfig>(&text.replace("head.*", "")).is_err());
}
