use super::*;
use proptest::prelude::*;

fn word() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..20)
}

fn words() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(word(), 0..6)
}

fn disk() -> impl Strategy<Value = Disk> {
    (any::<u8>(), word()).prop_map(|(number, kind)| Disk { number, kind })
}

fn root() -> impl Strategy<Value = Root> {
    let lower =
        prop_oneof![disk().prop_map(Lower::Disk), word().prop_map(|tag| Lower::Share { tag }),];
    let upper = prop_oneof![Just(Upper::Memory), disk().prop_map(Upper::Disk)];
    (lower, upper, any::<bool>()).prop_map(|(lower, upper, writable)| Root {
        lower,
        upper,
        writable,
    })
}

fn identity() -> impl Strategy<Value = Identity> {
    let limit =
        any::<(u8, u64, u64)>().prop_map(|(resource, soft, hard)| Limit { resource, soft, hard });
    let groups = prop::collection::vec(any::<u32>(), 0..5);
    let limits = prop::collection::vec(limit, 0..5);
    (any::<(u32, u32, u32, u64)>(), groups, limits).prop_map(
        |((uid, gid, umask, ignored), groups, limits)| Identity {
            uid,
            gid,
            groups,
            umask,
            limits,
            ignored,
        },
    )
}

fn streams() -> impl Strategy<Value = Streams> {
    (any::<Option<(u16, u16)>>(), any::<[bool; 3]>(), any::<[bool; 2]>()).prop_map(
        |(size, closed, [merged, rewinds])| Streams {
            terminal: size.map(|(columns, rows)| Window { columns, rows }),
            closed,
            merged,
            rewinds,
        },
    )
}

fn spec() -> impl Strategy<Value = Spec> {
    let share = (word(), word(), any::<bool>(), prop::option::of(word()));
    let file = (word(), word(), any::<bool>());
    let places = (
        root(),
        prop::collection::vec(share, 0..4),
        prop::collection::vec(file, 0..4),
        words(),
        word(),
        prop::collection::vec(any::<([u8; 4], u8, Option<[u8; 4]>)>(), 0..3),
    );
    let wire = any::<(Option<u32>, Option<u16>, bool)>()
        .prop_map(|(descriptor, listener, shared)| Wire { descriptor, listener, shared });
    let process = (identity(), words(), words(), word(), any::<[bool; 2]>(), streams(), wire);
    (places, process).prop_map(|((root, shares, files, scratch, hostname, networks), process)| {
        let (identity, arguments, environment, directory, flags, streams, wire) = process;
        let [directory_required, runscript] = flags;
        Spec {
            root,
            shares: shares
                .into_iter()
                .map(|(tag, target, readonly, file)| Share { tag, target, readonly, file })
                .collect(),
            scratch,
            files: files
                .into_iter()
                .map(|(path, content, append)| File { path, content, append })
                .collect(),
            hostname,
            networks: networks
                .into_iter()
                .map(|(address, prefix, gateway)| Network { address, prefix, gateway })
                .collect(),
            identity,
            arguments,
            runscript,
            environment,
            directory,
            directory_required,
            streams,
            wire,
        }
    })
}

fn to_guest() -> impl Strategy<Value = ToGuest> {
    prop_oneof![
        spec().prop_map(|spec| ToGuest::Start(Box::new(spec))),
        any::<(u8, bool)>().prop_map(|(number, group)| ToGuest::Signal { number, group }),
        any::<(u16, u16)>().prop_map(|(columns, rows)| ToGuest::Resize(Window { columns, rows })),
        any::<u32>().prop_map(|ports| ToGuest::Attach { ports }),
        any::<u32>().prop_map(|port| ToGuest::Dialed { port }),
    ]
}

fn to_host() -> impl Strategy<Value = ToHost> {
    let kind =
        prop_oneof![Just(Failure::Setup), Just(Failure::NotExecutable), Just(Failure::NotFound)];
    let how = prop_oneof![any::<u8>().prop_map(How::Exited), any::<u8>().prop_map(How::Signalled)];
    prop_oneof![
        any::<u32>().prop_map(|version| ToHost::Hello { version }),
        Just(ToHost::Started),
        Just(ToHost::Dial),
        Just(ToHost::Vacant),
        (kind, word()).prop_map(|(kind, text)| ToHost::Failed { kind, text }),
        any::<u8>().prop_map(|signal| ToHost::Stopped { signal }),
        (how, any::<[u64; 4]>()).prop_map(|(how, [user, system, resident, input])| {
            ToHost::Ended { how, usage: Usage { user, system, resident }, input }
        }),
    ]
}

/// Hands `bytes` over in pieces of `step` and takes all messages.
fn decode<T>(
    bytes: &[u8],
    step: usize,
    max: u32,
    next: impl Fn(&mut Decoder) -> Result<Option<T>, Error>,
) -> Result<Vec<T>, Error> {
    let mut decoder = Decoder::new(max);
    let mut all = Vec::new();
    for piece in bytes.chunks(step) {
        decoder.push(piece);
        while let Some(message) = next(&mut decoder)? {
            all.push(message);
        }
    }
    Ok(all)
}

proptest! {
    #[test]
    fn what_the_host_says_arrives_however_it_is_cut(
        messages in prop::collection::vec(to_guest(), 1..4),
        step in 1usize..100,
    ) {
        let bytes: Vec<u8> = messages.iter().flat_map(ToGuest::encode).collect();
        prop_assert_eq!(decode(&bytes, step, MAX_TO_GUEST, ToGuest::next), Ok(messages));
    }

    #[test]
    fn what_the_guest_says_arrives_however_it_is_cut(
        messages in prop::collection::vec(to_host(), 1..6),
        step in 1usize..20,
    ) {
        let bytes: Vec<u8> = messages.iter().flat_map(ToHost::encode).collect();
        prop_assert_eq!(decode(&bytes, step, MAX_TO_HOST, ToHost::next), Ok(messages));
    }

    #[test]
    fn any_bytes_are_an_answer_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&bytes, 64, MAX_TO_GUEST, ToGuest::next);
        let _ = decode(&bytes, 64, MAX_TO_HOST, ToHost::next);
    }

    #[test]
    fn a_frame_that_is_cut_short_or_goes_on_is_refused(message in to_host()) {
        let whole = message.encode();
        let with_length = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            let len = bytes.len() as u32 - 5;
            bytes[..4].copy_from_slice(&len.to_le_bytes());
            decode(&bytes, 1000, MAX_TO_HOST, ToHost::next)
        };
        let longer = [whole.as_slice(), &[0]].concat();
        prop_assert_eq!(with_length(&longer), Err(Error::Long));
        if whole.len() > 5 {
            prop_assert_eq!(with_length(&whole[..whole.len() - 1]), Err(Error::Short));
        }
    }
}

#[test]
fn lengths_are_capped_before_anything_is_kept() {
    let mut decoder = Decoder::new(MAX_TO_HOST);
    decoder.push(&(MAX_TO_HOST + 1).to_le_bytes());
    decoder.push(&[1]);
    assert_eq!(ToHost::next(&mut decoder), Err(Error::TooLong(MAX_TO_HOST + 1)));
    // A list that claims four thousand million elements has as many as fit.
    let mut decoder = Decoder::new(MAX_TO_HOST);
    decoder.push(&[5, 0, 0, 0, 3, 0, 255, 255, 255, 255]);
    assert_eq!(ToHost::next(&mut decoder), Err(Error::Short));
}
