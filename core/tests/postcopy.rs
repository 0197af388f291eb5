//! Postcopy of RAM alone, over sockets: the source's loop against a target that asks for pages, with cuts and recoveries.
#![cfg(not(any(loom, miri)))]

use notdirty_core::migration::postcopy::{Answer, Bitmap, Command, Named, Rest, ReturnPath, State, Step};
use notdirty_core::migration::{
    Cancel, Carrier, Channel, Event, Incoming, Limits, Progress, RamId, Run, Source, StreamCarrier, StreamReader,
    StreamWriter, multifd, read_list,
};
use notdirty_core::{DirtyClient, PAGE_SIZE, RamBlock, RamBlockSpec, RamList};
use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

fn pair() -> (Channel, Channel) {
    let (a, b) = UnixStream::pair().unwrap();
    let channel = |socket| Channel::new(OwnedFd::from(socket), PATIENCE, Cancel::default()).unwrap();
    (channel(a), channel(b))
}

/// Blocks of so many pages, on a host with pages of so many bytes.
fn ram(pages: &[u64], host: u64) -> (Arc<RamList>, Vec<Arc<RamBlock>>) {
    let list = Arc::new(RamList::new());
    let blocks = pages.iter().enumerate();
    let blocks = blocks
        .map(|(n, pages)| list.add(RamBlockSpec::new(format!("ram{n}"), pages * PAGE_SIZE).page_size(host)).unwrap());
    let blocks = blocks.collect();
    (list, blocks)
}

/// Each page whole, by its place and version; version 0 is zeros.
fn page_of(block: usize, page: u64, version: u64) -> Vec<u8> {
    if version == 0 {
        return vec![0; PAGE_SIZE as usize];
    }
    let word =
        |n: u64| ((version << 48) ^ ((block as u64) << 40) ^ (page << 12) ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..512).flat_map(|n| word(n).to_le_bytes()).collect()
}

/// The source of a move that may be cut.
struct Leaving {
    writer: StreamWriter<Channel>,
    rest: Rest,
    id: RamId,
    blocks: Vec<Arc<RamBlock>>,
}

impl Leaving {
    /// Up to the switch: one round of precopy if so, then these pages are written again.
    fn begin(
        to: Channel,
        list: &Arc<RamList>,
        blocks: &[Arc<RamBlock>],
        precopy: bool,
        again: &[(usize, u64)],
    ) -> Leaving {
        let mut writer = StreamWriter::new(to, "test", &[]).unwrap();
        for command in [Command::OpenReturnPath, Command::Name([7; 16]), Command::Advise(None)] {
            writer.command(command.code(), &command.data()).unwrap();
        }
        let mut source = Source::new(list.log(DirtyClient::MIGRATION).start().unwrap(), blocks);
        let mut carrier = StreamCarrier::begin_ram(&mut writer, blocks).unwrap();
        if precopy {
            source.round(&mut carrier, &Limits::default(), |_| true).unwrap();
        }
        for (block, page) in again {
            list.write(&blocks[*block], page * PAGE_SIZE, &page_of(*block, *page, 2)).unwrap();
        }
        source.sync(&carrier, &Limits::default()).unwrap();
        let (id, rest) = (carrier.id(), Rest::new(source));
        drop(carrier);
        for command in rest.discards(&Named::default()) {
            writer.command(command.code(), &command.data()).unwrap();
        }
        let blob = writer.package(
            |inner| inner.command(Command::Listen.code(), &[]),
            |inner| inner.command(Command::Run.code(), &[]),
        );
        let blob = blob.unwrap();
        let packaged = Command::Packaged(blob.len() as u32);
        writer.command(packaged.code(), &packaged.data()).unwrap();
        writer.out().put(&blob).unwrap();
        Leaving { writer, rest, id, blocks: blocks.to_vec() }
    }

    /// Sends what is left; `false` if the channel broke.
    fn send(&mut self, path: &ReturnPath) -> bool {
        let mut carrier = StreamCarrier::go_on(&mut self.writer, self.id, &self.blocks);
        use notdirty_core::migration::Carrier;
        let sent = carrier.begin().and_then(|()| self.rest.send(&mut carrier, &path.requests, None, |_| true));
        if sent.and_then(|()| carrier.end(true)).and_then(|()| carrier.end_ram()).is_err() {
            return false;
        }
        self.writer.finish().is_ok() && path.wait(PATIENCE, |heard| heard.shut == Some(0))
    }

    /// Goes on by another channel.
    fn recover(&mut self, to: Channel, path: &ReturnPath) -> bool {
        self.writer.replace(to);
        let blocks: Vec<_> = self.blocks.iter().map(|block| block.idstr().to_owned()).collect();
        for idstr in blocks {
            let command = Command::RecvBitmap(idstr);
            self.writer.command(command.code(), &command.data()).unwrap();
        }
        if self.writer.out().flush().is_err() || !path.wait(PATIENCE, |heard| heard.bitmaps.iter().all(Option::is_some))
        {
            return false;
        }
        let bitmaps: Vec<_> = path.heard().bitmaps.iter().flatten().cloned().collect();
        self.rest.resume(&bitmaps).unwrap();
        self.writer.command(Command::Resume.code(), &[]).unwrap();
        self.writer.out().flush().is_ok() && path.wait(PATIENCE, |heard| heard.resumed)
    }
}

/// What the target has: placed pages, in the order in which they came.
#[derive(Default)]
struct Came {
    missing: Vec<Vec<bool>>,
    order: Vec<(usize, u64)>,
    state: State,
}

struct Arriving {
    reader: StreamReader<Channel>,
    incoming: Option<Incoming>,
    blocks: Vec<Arc<RamBlock>>,
    came: Arc<Mutex<Came>>,
    /// After so many placed pages the channel is cut, once each.
    cuts: Vec<usize>,
}

impl Arriving {
    /// Reads until all of it is there (`true`), or the channel breaks. `running` is called at RUN.
    fn read(&mut self, answers: &Channel, running: &mut dyn FnMut(&Channel)) -> bool {
        let mut say = answers.try_clone().unwrap();
        loop {
            match self.reader.event() {
                Ok(Event::RamStart) => {
                    let listed = read_list(&mut self.reader).unwrap();
                    self.came.lock().unwrap().missing =
                        listed.iter().map(|block| vec![false; (block.used_length / PAGE_SIZE) as usize]).collect();
                    let incoming = Incoming::new(listed, self.blocks.clone()).unwrap();
                    self.incoming.insert(incoming).piece(&mut self.reader).unwrap();
                }
                Ok(Event::RamPiece(_)) => {
                    let incoming = self.incoming.as_mut().unwrap();
                    if !self.came.lock().unwrap().state.is_fetching() {
                        incoming.piece(&mut self.reader).unwrap();
                        continue;
                    }
                    let (came, blocks, cuts) = (&self.came, &self.blocks, &mut self.cuts);
                    let place = |block: usize, page: u64, bytes: Option<&[u8]>| {
                        let mut came = came.lock().unwrap();
                        if !std::mem::take(&mut came.missing[block][page as usize]) {
                            return Ok(false);
                        }
                        blocks[block].write_raw(page * PAGE_SIZE, bytes.unwrap_or(&[0; PAGE_SIZE as usize])).unwrap();
                        came.order.push((block, page));
                        if cuts.last() == Some(&came.order.len()) {
                            cuts.pop();
                            answers.shut();
                        }
                        Ok(true)
                    };
                    let done = incoming.fetch_by(&mut self.reader, place, || Ok(()));
                    if let Err(why) = done {
                        println!("{why}");
                        return false;
                    }
                }
                Ok(Event::Command(code, data)) => {
                    let command = Command::parse(code, &data).unwrap();
                    let mut came = self.came.lock().unwrap();
                    let mut go = |step| came.state = came.state.after(step).unwrap();
                    match command {
                        Command::OpenReturnPath => {}
                        Command::Name(name) => assert_eq!(name, [7; 16]),
                        Command::Advise(_) => go(Step::Advise),
                        Command::Discard(discard) => {
                            go(Step::Discard);
                            let (block, runs) = self.incoming.as_mut().unwrap().discard(&discard).unwrap();
                            for page in runs.into_iter().flat_map(|(run, _)| run) {
                                came.missing[block][page as usize] = true;
                            }
                        }
                        Command::DiscardMap(map) => {
                            go(Step::Discard);
                            let (block, _) = self.incoming.as_mut().unwrap().discard_map(&map).unwrap();
                            for page in 0..map.words.len() * 64 {
                                came.missing[block][map.first as usize + page] |=
                                    map.words[page / 64] >> (page % 64) & 1 != 0;
                            }
                        }
                        Command::Packaged(len) => {
                            let events = self.reader.package(len).unwrap();
                            let run = Event::Command(Command::Run.code(), vec![]);
                            assert_eq!(events, [Event::Command(Command::Listen.code(), vec![]), run]);
                            go(Step::Listen);
                            go(Step::Run);
                            drop(came);
                            running(answers);
                        }
                        Command::RecvBitmap(idstr) => {
                            go(Step::Resume);
                            let block = self.blocks.iter().position(|block| block.idstr() == idstr).unwrap();
                            let words = came.missing[block].chunks(64).map(|bits| {
                                bits.iter().enumerate().fold(0u64, |word, (n, missing)| word | u64::from(!missing) << n)
                            });
                            let words = Bitmap(words.collect());
                            say.write_all(&Answer::Bitmap(idstr).to_bytes()).unwrap();
                            words.write(&mut say).unwrap();
                        }
                        Command::Resume => {
                            go(Step::Resume);
                            self.incoming.as_mut().unwrap().forget_last();
                            say.write_all(&Answer::ResumeAck(1).to_bytes()).unwrap();
                        }
                        other => panic!("{other:?}"),
                    }
                }
                Ok(Event::End) => {
                    self.reader.description().unwrap();
                    // If that is lost it is said again.
                    return say.write_all(&Answer::Shut(0).to_bytes()).is_ok();
                }
                Ok(Event::Section(section)) => panic!("{section:?}"),
                Err(why) => {
                    println!("{why}");
                    return false;
                }
            }
        }
    }
}

/// Moves these blocks; pages of `written` have version 1 before, those of `again` version 2 when it stands still.
fn go(
    sizes: &[u64],
    written: &[(usize, u64)],
    again: &[(usize, u64)],
    precopy: bool,
    asked: &[(usize, u64)],
    cuts: Vec<usize>,
) -> Vec<(usize, u64)> {
    go_by(PAGE_SIZE, sizes, written, again, precopy, asked, cuts)
}

/// The same on a host with such pages.
#[allow(clippy::too_many_arguments, reason = "one more than the function above")]
fn go_by(
    host: u64,
    sizes: &[u64],
    written: &[(usize, u64)],
    again: &[(usize, u64)],
    precopy: bool,
    asked: &[(usize, u64)],
    cuts: Vec<usize>,
) -> Vec<(usize, u64)> {
    let ((list, from), (_other, to)) = (ram(sizes, host), ram(sizes, host));
    for (block, page) in written {
        list.write(&from[*block], page * PAGE_SIZE, &page_of(*block, *page, 1)).unwrap();
    }
    let (first, answers) = pair();
    let came = Arc::new(Mutex::new(Came::default()));
    let (sender, receiver) = std::sync::mpsc::channel::<Channel>();
    std::thread::scope(|scope| {
        let (came, to) = (came.clone(), to.clone());
        scope.spawn(move || {
            let mut reader = StreamReader::new(answers.try_clone().unwrap()).unwrap();
            reader.configuration().unwrap();
            let mut arriving = Arriving { reader, incoming: None, blocks: to, came, cuts };
            let mut channel = answers;
            let mut ask = |channel: &Channel| {
                for (block, page) in asked {
                    let (idstr, start) = (Some(format!("ram{block}")), page * PAGE_SIZE);
                    let request = Answer::Request { idstr, start, len: PAGE_SIZE as u32 };
                    channel.try_clone().unwrap().write_all(&request.to_bytes()).unwrap();
                }
            };
            while !arriving.read(&channel, &mut ask) {
                channel = receiver.recv().unwrap();
                arriving.reader.replace(channel.try_clone().unwrap());
            }
        });
        let path =
            Arc::new(ReturnPath::new(sizes.iter().enumerate().map(|(n, pages)| (format!("ram{n}"), *pages)).collect()));
        let hears = |path: &Arc<ReturnPath>, from: &Channel| {
            let (path, mut from) = (path.clone(), from.try_clone().unwrap());
            scope.spawn(move || path.listen(&mut from));
        };
        let mut path = path;
        let mut leaving = Leaving::begin(first.try_clone().unwrap(), &list, &from, precopy, again);
        leaving.writer.out().flush().unwrap();
        hears(&path, &first);
        let mut before = first;
        if !asked.is_empty() {
            // Those are first, whatever the sweep does.
            while path.requests.asked() < asked.len() as u64 && path.heard().broken.is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        while !leaving.send(&path) {
            before.shut();
            let (next, other) = pair();
            sender.send(other).unwrap();
            path = Arc::new(ReturnPath::new(
                sizes.iter().enumerate().map(|(n, pages)| (format!("ram{n}"), *pages)).collect(),
            ));
            hears(&path, &next);
            before = next;
            leaving.recover(before.try_clone().unwrap(), &path);
        }
        before.shut();
    });
    for (index, pages) in sizes.iter().enumerate() {
        for page in 0..*pages {
            let version = match (written.contains(&(index, page)), again.contains(&(index, page))) {
                (_, true) => 2,
                (written, _) => u64::from(written),
            };
            let mut bytes = vec![0; PAGE_SIZE as usize];
            to[index].read_bytes(page * PAGE_SIZE, &mut bytes).unwrap();
            assert!(bytes == page_of(index, page, version), "block {index}, page {page}, version {version}");
        }
    }
    let came = came.lock().unwrap();
    assert!(came.missing.iter().flatten().all(|missing| !missing));
    came.order.clone()
}

#[test]
fn pages_that_are_asked_for_come_first_and_the_sweep_goes_on_behind_the_last_of_them() {
    let written: Vec<_> = (0..300).map(|page| (0, page)).chain((0..40).map(|page| (1, page))).collect();
    let asked = [(0, 200), (1, 7), (0, 199), (0, 200), (1, 30)];
    let order = go(&[300, 50], &written, &[], false, &asked, vec![]);
    // Those asked for in their order, and then the one behind the last.
    assert!(order.len() >= written.len());
    assert_eq!(order[..6], [(0, 200), (1, 7), (0, 199), (1, 30), (1, 31), (1, 32)]);
}

#[test]
fn a_page_of_the_host_goes_whole_and_in_one_piece_whichever_of_its_records_is_asked_for() {
    let written: Vec<_> = (0..300).map(|page| (0, page)).chain((0..40).map(|page| (1, page))).collect();
    let order = go_by(16 << 10, &[304, 48], &written, &[], false, &[(0, 202), (1, 7), (0, 201)], vec![]);
    let whole = |block: usize, page: u64| (page..page + 4).map(move |page| (block, page));
    let first: Vec<_> = whole(0, 200).chain(whole(1, 4)).chain(whole(1, 8)).collect();
    assert_eq!(order[..12], first);
    assert!(order.chunks(4).all(|four| four[0].1 % 4 == 0 && four.windows(2).all(|two| two[0].1 + 1 == two[1].1)));
}

/// Pages after which the source asks what has come.
const ALL: u64 = 4096;

/// So many went, of RAM that goes back to the host as it is known to have come.
fn all_went(then: impl FnOnce(&mut Rest)) {
    let (list, blocks) = ram(&[ALL], PAGE_SIZE);
    (0..ALL).for_each(|page| list.write(&blocks[0], page * PAGE_SIZE, &[1]).unwrap());
    let (to, mut from) = pair();
    let mut leaving = Leaving::begin(to, &list, &blocks, false, &[]);
    leaving.rest.release();
    std::thread::scope(|scope| {
        scope.spawn(move || std::io::copy(&mut from, &mut std::io::sink()));
        let path = ReturnPath::new(vec![("ram0".into(), ALL)]);
        let mut carrier = StreamCarrier::go_on(&mut leaving.writer, leaving.id, &leaving.blocks);
        carrier.begin().unwrap();
        leaving.rest.send(&mut carrier, &path.requests, None, |_| true).unwrap();
        drop(carrier);
        then(&mut leaving.rest);
        // The other end reads to its end.
        drop(leaving);
    });
}

#[test]
fn a_target_that_lacks_a_page_which_it_had_and_the_source_gave_back_is_sent_no_zeros() {
    all_went(|rest| {
        rest.placed(0x1_0000);
        assert_eq!(rest.released(), ALL * PAGE_SIZE);
        let all = vec![u64::MAX; (ALL / 64) as usize];
        rest.resume(&[Bitmap(all.clone())]).unwrap();
        let lacks = [&all[1..], &[!1]].concat();
        let why = rest.resume(&[Bitmap(lacks)]).unwrap_err().to_string();
        assert!(why.contains("RAM block ram0: 1 pages from page 0xfc0 on went back"), "{why}");
        assert_eq!(rest.left(), 0, "nothing is to be sent");
    });
}

#[test]
fn an_answer_to_what_went_before_a_cut_gives_nothing_back_that_is_sent_again() {
    all_went(|rest| {
        // The target had nothing yet as the channel broke. Its next answers have higher numbers.
        rest.resume(&[Bitmap(vec![0; (ALL / 64) as usize])]).unwrap();
        rest.placed(0x1_0001);
        assert_eq!((rest.released(), rest.left()), (0, ALL));
    });
}

#[test]
fn after_a_round_of_precopy_only_what_was_written_since_is_missing() {
    let written: Vec<_> = (0..100).map(|page| (0, page)).collect();
    let again = [(0, 3), (0, 4), (0, 90), (0, 110)];
    let order = go(&[120], &written, &again, true, &[(0, 90)], vec![]);
    assert_eq!(order, [(0, 90), (0, 110), (0, 3), (0, 4)]);
}

#[test]
fn a_channel_that_is_cut_again_and_again_loses_no_page_and_places_none_twice() {
    let written: Vec<_> = (0..3000).filter(|page| page % 7 != 0).map(|page| (0, page)).collect();
    for cuts in [vec![1], vec![2500, 1000, 999, 5, 1], vec![2571]] {
        let order = go(&[3000, 64], &written, &[(1, 63)], false, &[(0, 2999)], cuts.clone());
        let once: BTreeSet<_> = order.iter().copied().collect();
        assert_eq!(order.len(), once.len(), "{cuts:?}");
        // Pages that the host has given beside them are zero, and come as such.
        assert!(written.iter().chain(&[(1, 63)]).all(|page| once.contains(page)), "{cuts:?}");
    }
}

#[test]
fn the_stream_waits_for_all_that_went_by_channels_before_pages_go_by_it_alone() {
    let (list, blocks) = ram(&[40], PAGE_SIZE);
    (0..40).for_each(|page| list.write(&blocks[0], page * PAGE_SIZE, &page_of(0, page, 1)).unwrap());
    let (_there, targets) = ram(&[40], PAGE_SIZE);
    let (ours, theirs): (Vec<_>, Vec<_>) = (0..2).map(|_| pair()).unzip();
    let (to, from) = pair();
    let (arrived, arrives) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let (blocks, targets) = (&blocks, &targets);
        scope.spawn(move || {
            let mut writer = StreamWriter::new(to, "test", &[]).unwrap();
            let main = StreamCarrier::begin_ram(&mut writer, blocks).unwrap();
            let threads = |count: usize, run: &(dyn Fn(usize) + Sync)| {
                std::thread::scope(|scope| (0..count).for_each(|n| drop(scope.spawn(move || run(n)))));
            };
            let mut all = multifd::Multifd::new(main, ours, &threads);
            // It ends in the middle, as by a command: its channels have not met.
            all.begin().unwrap();
            let run = Run { index: 0, block: &blocks[0], pages: 0..40 };
            all.send(&[run], &mut Progress::default()).unwrap();
            all.end(false).unwrap();
            let bytes = all.bytes();
            let mut main = all.into_main().unwrap();
            assert!(main.bytes() > bytes && bytes > 40 * PAGE_SIZE);
            main.command(0x4e03, &[]).unwrap();
        });
        let meeting = Arc::new(multifd::Meeting::default());
        let meets = meeting.clone();
        scope.spawn(move || {
            let mut reader = StreamReader::new(from).unwrap();
            reader.configuration().unwrap();
            assert!(matches!(reader.event(), Ok(Event::RamStart)));
            let mut incoming = Incoming::new(read_list(&mut reader).unwrap(), targets.clone()).unwrap();
            incoming.meet(meets, 2, PATIENCE);
            incoming.piece(&mut reader).unwrap();
            while let Event::RamPiece(_) = reader.event().unwrap() {
                incoming.piece(&mut reader).unwrap();
            }
            let mut bytes = vec![0; PAGE_SIZE as usize];
            let here = (0..40).all(|page| {
                targets[0].read_bytes(page * PAGE_SIZE, &mut bytes).unwrap();
                bytes == page_of(0, page, 1)
            });
            arrived.send(here).unwrap();
        });
        // What comes by the stream alone is held up by channels that are not read; what went fits into their sockets.
        let early = arrives.recv_timeout(Duration::from_millis(60));
        for channel in theirs {
            let meeting = meeting.clone();
            scope.spawn(move || multifd::receive(channel, targets, &meeting, PATIENCE).unwrap());
        }
        assert!(early.is_err(), "it did not wait");
        assert!(arrives.recv_timeout(PATIENCE).unwrap(), "a page was not here");
    });
}

#[test]
fn a_channel_that_ends_before_its_sync_is_not_waited_for() {
    let (meeting, began) = (multifd::Meeting::default(), std::time::Instant::now());
    multifd::receive(&[][..], &[], &meeting, PATIENCE).unwrap();
    let mut writer = StreamWriter::new(Vec::new(), "test", &[]).unwrap();
    let (list, blocks) = ram(&[4], PAGE_SIZE);
    let mut source = Source::new(list.log(DirtyClient::MIGRATION).start().unwrap(), &blocks);
    let main = StreamCarrier::begin_ram(&mut writer, &blocks).unwrap();
    let mut all = multifd::Multifd::new(main, vec![], &|_, _| {});
    source.round(&mut all, &Limits::default(), |_| true).unwrap();
    all.into_main().unwrap();
    let bytes = writer.into_inner().unwrap();
    let mut reader = StreamReader::new(&bytes[..]).unwrap();
    reader.configuration().unwrap();
    assert!(matches!(reader.event(), Ok(Event::RamStart)));
    let mut incoming = Incoming::new(read_list(&mut reader).unwrap(), blocks).unwrap();
    incoming.meet(Arc::new(meeting), 1, PATIENCE);
    incoming.piece(&mut reader).unwrap();
    assert!(matches!(reader.event(), Ok(Event::RamPiece(_))));
    let why = incoming.piece(&mut reader).unwrap_err().to_string();
    assert!(why.contains("did not come to its sync"), "{why}");
    assert!(began.elapsed() < PATIENCE / 2);
}

#[test]
fn a_message_that_no_machine_begins_with_is_refused_by_its_length_before_it_is_read() {
    let (to, from) = pair();
    let mut writer = StreamWriter::new(to, "test", &[]).unwrap();
    writer.out().flush().unwrap();
    writer.out().put(b"the start of a message").unwrap();
    writer.out().flush().unwrap();
    let mut reader = StreamReader::new(from).unwrap();
    let why = reader.package((256 << 20) + 1).unwrap_err().to_string();
    assert!(why.contains("the length of the message that the machine begins with is 0x10000001"), "{why}");
    drop(writer);
    let why = reader.package(256 << 20).unwrap_err().to_string();
    assert!(why.contains("ends"), "{why}");
}
