//! Users of one log that take turns.

use super::*;
use crate::addr::PAGE_SIZE;
use crate::addr::PageIndex;
use crate::ram::RamBlockSpec;

#[test]
fn a_sync_that_waits_for_that_of_another_user_goes_by_what_is_logged_once_it_is_its_turn() {
    let list = Arc::new(RamList::new());
    let ram = list.add(RamBlockSpec::new("ram", 64 * PAGE_SIZE).resizable(true)).unwrap();
    let [late, other] = [(); 2].map(|()| list.log(DirtyClient::MIGRATION).blocks([&ram]).rings(128).start().unwrap());
    let take = |user: &DirtyLog| user.sync(None).unwrap().commit();
    std::thread::scope(|scope| {
        let turn = lock(&late.log.users);
        let waits = scope.spawn(|| take(&late));
        std::thread::sleep(Duration::from_millis(100));
        list.resize(&ram, 8 * PAGE_SIZE).unwrap();
        // The other user's take.
        let (guard, mut pages) = (pin(), PageSet::new());
        let (ranges, _) = late.log.ranges(&guard);
        late.log.take(&ranges, &ranges, &guard, &mut pages);
        drop((turn, guard));
        waits.join().unwrap();
    });
    take(&other);
    // Nothing is written, and the page that is cut off is marked.
    list.write(&ram, 40 * PAGE_SIZE, &[1; 8]).unwrap_err();
    take(&other);
    list.resize(&ram, 64 * PAGE_SIZE).unwrap();
    let page = PageIndex::new(ram.offset().page().get() + 40);
    assert!([late, other].iter().all(|user| take(user).contains(page)));
}
