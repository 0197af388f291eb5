//! The counters, in words.

use std::fmt::Write;
use std::time::Duration;

use notdirty_tcg::{EngineKind, VcpuStats};

/// What a run amounted to.
pub(super) fn text(stats: &VcpuStats, elapsed: Duration, engine: EngineKind) -> String {
    let mut out = String::new();
    let seconds = elapsed.as_secs_f64();
    let mips = if seconds > 0.0 { stats.retired as f64 / seconds / 1e6 } else { 0.0 };
    let mut row = |name: &str, text: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "  {name:<20} {text}");
    };
    row("guest instructions", grouped(stats.retired));
    row("time", format!("{seconds:.3} s"));
    let how = match engine {
        EngineKind::Jit => "jit",
        EngineKind::Interp => "interp",
    };
    row("rate", format!("{mips:.1} MIPS ({how})"));
    row("TBs translated", translated(stats));
    if stats.tb.tier2 != 0 {
        row("", format!("{:>14}  that were hot, by tier 2", grouped(stats.tb.tier2)));
    }
    if stats.tb.alone != 0 {
        row("", format!("{:>14}  while one thread stored: no locked instructions", grouped(stats.tb.alone)));
    }
    row(
        "TBs invalidated",
        format!(
            "{} whose bytes were written, {} of them young",
            grouped(stats.tbs_invalidated),
            grouped(stats.tb.died_young)
        ),
    );
    if stats.tbs_evicted != 0 {
        row("TBs evicted", format!("{} for room in the code cache, or a new memory map", grouped(stats.tbs_evicted)));
    }
    if engine == EngineKind::Jit && stats.tier0 + stats.interpreted != 0 {
        let (tier0, oracle) = (grouped(stats.tier0), grouped(stats.interpreted));
        row("not translated", format!("{tier0} instructions by tier 0, {oracle} by the oracle"));
    }

    let tlb = &stats.tlb;
    // Not here: mixed_page, whose accesses are counted again by what they turn out to be.
    let causes = [
        ("load miss", tlb.load_miss),
        ("store miss", tlb.store_miss),
        ("fetch miss", tlb.fetch_miss),
        ("store beside code", tlb.code_page),
        ("store into code", tlb.code_hit),
        ("store to a page with other listeners", tlb.notdirty),
        ("device load", tlb.mmio_read),
        ("device store", tlb.mmio_write),
        ("page crossing", tlb.page_cross),
        ("misaligned", tlb.misaligned),
        ("store to ROM", tlb.rom_discard),
        ("fault", tlb.faults),
    ];
    let slow: u64 = causes.iter().map(|(_, count)| count).sum();
    // The fast path says nothing of hits: they are what the slow paths leave of all accesses.
    if let Some(accesses) = stats.accesses {
        row("TLB hits", grouped(accesses.saturating_sub(slow - tlb.fetch_miss)));
    }
    let each = match stats.retired.checked_div(slow) {
        Some(each) => format!(", one in {} instructions", grouped(each)),
        None => String::new(),
    };
    row("TLB slow paths", format!("{}{each}", grouped(slow)));
    for (name, count) in causes.iter().filter(|(_, count)| *count != 0) {
        row("", format!("{:>14}  {name}", grouped(*count)));
    }
    row("TLB flushes", grouped(tlb.flushes));
    let entries = [
        ("entries dropped by fences of page tables", tlb.dropped),
        ("entries armed, so that their stores are heard again", tlb.armed),
    ];
    for (name, count) in entries.iter().filter(|(_, count)| *count != 0) {
        row("", format!("{:>14}  {name}", grouped(*count)));
    }
    out
}

/// What translation amounted to, and cost.
fn translated(stats: &VcpuStats) -> String {
    let (time, tb) = (stats.translate_time, &stats.tb);
    let mut out = format!("{} in {:.3} s", grouped(stats.tbs_translated), time.as_secs_f64());
    if tb.insns != 0 {
        let each = |what: f64| what / tb.insns as f64;
        let (ns, bytes) = (each(time.as_nanos() as f64), each(tb.host_bytes as f64));
        // Writing to a String cannot fail.
        let _ = write!(out, ": {} instructions, {ns:.0} ns and {bytes:.1} host bytes each", grouped(tb.insns));
    }
    out
}

/// `1234567` → `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at != 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fences_drop_and_re_arms_arm_is_told_where_there_is_any() {
        let mut stats = VcpuStats::default();
        let of = |stats: &VcpuStats| text(stats, Duration::ZERO, EngineKind::Jit);
        assert!(of(&stats).ends_with("TLB flushes          0\n"));
        (stats.tlb.load_miss, stats.tlb.dropped, stats.tlb.armed) = (1234, 1000, 16_384);
        let text = of(&stats);
        let line = |words: &str| text.lines().find(|line| line.contains(words)).map(str::trim).map(str::to_owned);
        assert_eq!(line("load miss").as_deref(), Some("1,234  load miss"));
        assert_eq!(line("dropped").as_deref(), Some("1,000  entries dropped by fences of page tables"));
        assert_eq!(line("armed").as_deref(), Some("16,384  entries armed, so that their stores are heard again"));
    }

    #[test]
    fn digits_are_grouped_in_threes() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }
}
