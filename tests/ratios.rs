//! The arithmetic of the comparisons in `benches/compare`: a benchmark cannot test itself.

#[allow(dead_code, reason = "the benchmark uses all of it")]
#[path = "../benches/compare/ratios.rs"]
mod ratios;

use ratios::{Cores, in_order, pairs_done, percentile, read, read_by_cores};

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

#[test]
fn a_reading_that_is_there_already_is_an_error_and_a_later_run_counts_on() {
    let once = format!("{HEAD}a,b,c,0,guestwire,rate,Mpps,1\na,b,c,2,c,rate,Mpps,1\nx,b,c,0,c,rate,Mpps,1\n");
    assert!(read(&once).is_ok());
    assert!(read(&format!("{once}a,b,c,0,guestwire,rate,Mpps,2\n")).unwrap_err().contains("a second time"));
    let done = pairs_done(&once);
    let of = |load: &str| done.get(&[load, "b", "c"].map(str::to_owned)).copied();
    assert_eq!((of("a"), of("x"), of("y")), (Some(3), Some(1), None), "one that was interrupted is passed over");
}

#[test]
fn where_less_is_nothing_there_is_no_ratio() {
    let csv = format!("{HEAD}a,b,c,0,guestwire,retransmits,segments,900\na,b,c,0,c,retransmits,segments,1\n");
    assert_eq!(read(&csv).unwrap().first_key_value().unwrap().1.ratios, [] as [f64; 0]);
}

#[test]
fn pairs_are_told_apart_by_how_far_the_cores_were() {
    // The ways before and after either side.
    let pair = |pair: usize, ways: [u32; 4], rate: u32| {
        let sides = [("guestwire", rate, &ways[..2]), ("ovs", 1, &ways[2..])];
        let lines = sides.map(|(side, rate, ways)| {
            let metrics = [("rate", rate), ("bounce-before", ways[0]), ("bounce-after", ways[1])];
            metrics.map(|(metric, value)| format!("p,64,ovs,{pair},{side},{metric},unit,{value}\n")).concat()
        });
        lines.concat()
    };
    // One that is far shorter than the others is no measure for them.
    let near = [pair(0, [28, 70, 60, 80], 2), pair(3, [61, 64, 60, 119], 5)].concat();
    let all = near + &pair(1, [330, 310, 330, 340], 3) + &pair(2, [61, 330, 60, 70], 4);
    let by_cores = read_by_cores(&format!("{HEAD}{all}")).unwrap();
    let ratios = |cores| {
        let rows = by_cores.get(&cores).unwrap();
        rows.iter().find(|(row, _)| row.metric == "rate").unwrap().1.ratios.clone()
    };
    assert_eq!(ratios(Cores::Near), [2.0, 5.0]);
    assert_eq!(ratios(Cores::Far), [3.0]);
    assert_eq!(ratios(Cores::Mixed), [4.0]);
    let alike = format!("{HEAD}{}", pair(0, [70, 80, 60, 60], 2) + &pair(1, [90, 70, 60, 100], 2));
    assert!(read_by_cores(&alike).unwrap().is_empty(), "nothing to tell apart");
    assert!(read_by_cores(&format!("{HEAD}p,64,ovs,0,ovs,rate,Mpps,1\n")).unwrap().is_empty(), "not known");
}
