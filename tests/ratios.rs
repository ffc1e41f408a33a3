//! The arithmetic of the comparisons in `benches/compare`: a benchmark cannot test itself.

#[allow(dead_code, reason = "the benchmark uses all of it")]
#[path = "../benches/compare/ratios.rs"]
mod ratios;

use ratios::{in_order, percentile, read};

const HEAD: &str = "load,case,peer,pair,side,metric,unit,value\n";

#[test]
fn percentiles_lie_between_values() {
    assert_eq!(percentile(&[], 0.5), None);
    assert_eq!(percentile(&[7.0], 0.9), Some(7.0));
    let values = [5.0, 1.0, 3.0, 2.0, 4.0];
    assert_eq!([0.0, 0.5, 1.0].map(|part| percentile(&values, part)), [Some(1.0), Some(3.0), Some(5.0)]);
    assert_eq!(percentile(&[1.0, 2.0], 0.5), Some(1.5));
    assert!((percentile(&values, 0.9).unwrap() - 4.6).abs() < 1e-9);
}

#[test]
fn ratios_are_made_pair_by_pair() {
    let csv = format!(
        "{HEAD}packets,64,ovs,0,guestwire,rate,Mpps,12\npackets,64,ovs,0,ovs,rate,Mpps,6\n\
         packets,64,ovs,1,guestwire,rate,Mpps,9\npackets,64,ovs,1,ovs,rate,Mpps,3\n\
         packets,64,ovs,2,guestwire,rate,Mpps,100\npackets,64,testpmd,0,guestwire,rate,Mpps,1\n"
    );
    let rows = read(&csv).unwrap();
    let (row, figures) = rows.first_key_value().unwrap();
    assert_eq!((row.peer.as_str(), row.metric.as_str()), ("ovs", "rate"));
    assert_eq!(figures.ratios, [2.0, 3.0], "a pair without its other side has no ratio");
    assert_eq!((figures.ours.len(), figures.theirs.len()), (3, 2), "and is not thrown away");
    assert_eq!(rows.last_key_value().unwrap().1.ratios, [] as [f64; 0]);
}

#[test]
fn numbers_are_in_the_order_of_numbers() {
    let lines = ["9000", "64", "tcp-8", "1500", "tcp-16"].map(|case| format!("a,{case},ovs,0,guestwire,rate,Mpps,1\n"));
    let rows = read(&format!("{HEAD}{}", lines.concat())).unwrap();
    let cases: Vec<&str> = in_order(&rows).iter().map(|(row, _)| row.case.as_str()).collect();
    assert_eq!(cases, ["64", "1500", "9000", "tcp-8", "tcp-16"]);
}

#[test]
fn a_peer_of_zero_and_a_broken_line() {
    let zero = format!("{HEAD}idle,ports-2,ovs,0,guestwire,wakes,count,0\nidle,ports-2,ovs,0,ovs,wakes,count,0\n");
    assert_eq!(read(&zero).unwrap().first_key_value().unwrap().1.ratios, [] as [f64; 0]);
    assert!(read(&format!("{HEAD}idle,ports-2\n")).unwrap_err().starts_with("line 2"));
    assert!(read(&format!("{HEAD}a,b,c,0,d,e,f,fast\n")).is_err());
}
