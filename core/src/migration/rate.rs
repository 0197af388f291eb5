//! How fast RAM becomes dirty, before anybody moves it.
//!
//! ```text
//!   bits     a log of a client of its own ─▶ the period ─▶ one sync: the pages that were written          exact; first stores are slow
//!   rings    the same, by dirty rings                                                                    exact, and costs what is dirty
//!   samples  hashes of a page in so many ─▶ the period ─▶ hashes again: the share that differs              an estimate; no store is slower
//! ```

use crate::addr::{PAGE_BITS, PAGE_SIZE};
use crate::dirty::{LogError, NoRoom};
use crate::ram::{RamBlock, RamList};
use core::hash::Hasher;
use std::collections::hash_map::DefaultHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RateBy {
    /// By dirty bits.
    Bits,
    /// By dirty rings of so many entries. A run whose ring is full ends, so they are to be large enough for the period.
    Rings(u32),
    /// By so many pages of each GiB, chosen by chance; at least 256 of each block.
    Samples(u32),
}

/// No rate is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RateError {
    /// There are as many clients as there may be.
    #[error(transparent)]
    Client(#[from] NoRoom),
    /// A vCPU does not answer, or the rings' size is none.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// How fast RAM became dirty.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct DirtyRate {
    /// Pages that were written; of samples an estimate.
    pub pages: u64,
    /// In this time.
    pub period: Duration,
}

impl DirtyRate {
    /// Bytes a second.
    pub fn bytes_per_second(&self) -> f64 {
        (self.pages << PAGE_BITS) as f64 / self.period.as_secs_f64().max(1e-9)
    }
}

/// Watches all RAM of a list for `period`. Not on a vCPU's own thread while it runs.
///
/// # Errors
/// [`RateError`].
pub fn dirty_rate(list: &Arc<RamList>, by: RateBy, period: Duration) -> Result<DirtyRate, RateError> {
    let log = match by {
        RateBy::Samples(each_gib) => return Ok(by_samples(list, each_gib, period)),
        RateBy::Bits => list.log(list.add_client("dirty rate")?).start()?,
        RateBy::Rings(entries) => list.log(list.add_client("dirty rate")?).rings(entries).start()?,
    };
    let start = Instant::now();
    std::thread::sleep(period);
    let pages = log.sync(Some(Duration::from_secs(10)))?.commit().count();
    Ok(DirtyRate { pages, period: start.elapsed() })
}

fn by_samples(list: &RamList, each_gib: u32, period: Duration) -> DirtyRate {
    let blocks: Vec<Arc<RamBlock>> = list.blocks(&crate::rcu::pin()).cloned().collect();
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut samples = Vec::new();
    for block in &blocks {
        let pages = block.pages().len();
        let count = ((pages >> (30 - PAGE_BITS)) * u64::from(each_gib)).max(256).min(pages);
        let chosen = (0..count).map(|_| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let page = random % pages.max(1);
            (page, hash(block, page))
        });
        samples.push(chosen.collect::<Vec<_>>());
    }
    let start = Instant::now();
    std::thread::sleep(period);
    let mut dirty = 0.0;
    for (block, samples) in blocks.iter().zip(&samples) {
        let changed = samples.iter().filter(|(page, before)| hash(block, *page) != *before).count();
        dirty += changed as f64 / samples.len().max(1) as f64 * block.pages().len() as f64;
    }
    DirtyRate { pages: dirty as u64, period: start.elapsed() }
}

fn hash(block: &RamBlock, page: u64) -> u64 {
    let (mut bytes, mut hasher) = ([0; PAGE_SIZE as usize], DefaultHasher::new());
    // A page that is gone is as it was.
    if block.read_bytes(page << PAGE_BITS, &mut bytes).is_ok() {
        hasher.write(&bytes);
    }
    hasher.finish()
}

#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use super::*;
    use crate::ram::RamBlockSpec;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn bits_and_rings_count_each_page_once_and_samples_come_near() {
        let list = Arc::new(RamList::new());
        let block = list.add(RamBlockSpec::new("ram", 1024 * PAGE_SIZE)).unwrap();
        list.add(RamBlockSpec::new("idle", 1024 * PAGE_SIZE)).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut value = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    value += 1;
                    // Half of the block, again and again.
                    list.write(&block, value % 512 * PAGE_SIZE, &value.to_le_bytes()).unwrap();
                }
            });
            let period = Duration::from_millis(50);
            for by in [RateBy::Bits, RateBy::Rings(1024)] {
                let rate = dirty_rate(&list, by, period).unwrap();
                assert_eq!(rate.pages, 512, "{by:?}");
                assert!(rate.period >= period && rate.bytes_per_second() > 0.0);
            }
            let rate = dirty_rate(&list, RateBy::Samples(1 << 20), period).unwrap();
            assert!((300..700).contains(&rate.pages), "{rate:?}");
            stop.store(true, Ordering::Relaxed);
        });
    }
}
