use super::*;

fn nobody() -> Credential {
    Credential {
        uid: 0,
        gid: 0,
        gids: Vec::new(),
    }
}

/// The compound alone: what follows the RPC header.
fn body(compound: &Compound, slot: Option<SlotUse>) -> Vec<u8> {
    let header = call::begin(Procedure::Compound, &nobody(), "").len();
    let call = compound.finish(slot);
    [&call.head[header..], &call.rest.concat()].concat()
}

#[test]
fn sequence_carries_the_slot_it_is_sent_on() {
    let mut compound = Compound::in_session(&nobody(), "");
    compound.put_root().once();
    let slot = |seqid| SlotUse {
        session: [9; 16],
        seqid,
        slot: 2,
        highest: 5,
        keeps: true,
    };
    let expected = |seqid: u8| {
        [
            &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2][..], // tag, minor, two ops
            &[0, 0, 0, 53],
            &[9; 16],
            &[0, 0, 0, seqid, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0, 1],
            &[0, 0, 0, 24],
        ]
        .concat()
    };
    assert_eq!(body(&compound, Some(slot(3))), expected(3));
    assert_eq!(body(&compound, Some(slot(4))), expected(4), "sent again");
}

#[test]
fn an_exclusive_open_carries_its_verifier_before_the_attributes() {
    let mut compound = Compound::bare(&nobody(), "");
    let attrs = NewAttributes {
        mode: Some(0o600),
        ..NewAttributes::default()
    };
    compound.open(
        (0x11, b"ow"),
        3,
        &Create::Exclusive([8; 8], &attrs),
        Claim::Name(b"f"),
    );
    assert_eq!(
        body(&compound, None)[12..],
        [
            &[0, 0, 0, 18, 0, 0, 0, 0, 0, 0, 4, 3, 0, 0, 0, 0][..],
            &[0, 0, 0, 0, 0, 0, 0, 0x11, 0, 0, 0, 2, b'o', b'w', 0, 0],
            &[0, 0, 0, 1, 0, 0, 0, 3, 8, 8, 8, 8, 8, 8, 8, 8],
            &[
                0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 1, 0x80
            ],
            &[0, 0, 0, 0, 0, 0, 0, 1, b'f', 0, 0, 0],
        ]
        .concat()
    );
}

#[test]
fn data_of_a_write_are_followed_by_padding_and_the_next_operation() {
    let mut compound = Compound::bare(&nobody(), "");
    let data = [Bytes::from_static(b"ab"), Bytes::from_static(b"cde")];
    compound
        .write(StateId::ANONYMOUS, 7, Stable::FileSync, &data)
        .then()
        .get_attrs(super::super::attrs::CHANGE_ONLY);
    assert_eq!(
        body(&compound, None)[12..],
        [
            &[0, 0, 0, 38][..],
            &[0; 16],
            &[0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0, 0, 5],
            b"abcde\0\0\0",
            &[0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 8],
        ]
        .concat()
    );
    assert_eq!(compound.essential(), 0);
    assert_eq!(compound.len(), 2);
}

#[test]
fn only_welcome_operations_give_way_to_the_limit() {
    let mut compound = Compound::in_session(&nobody(), "");
    compound.at_most(3).put_root().lookup(b"a").lookup(b"b");
    assert_eq!(compound.len(), 4, "the caller's to refuse");
    let whole = body(&compound, None);
    compound.then().get_handle();
    assert_eq!(compound.len(), 4);
    assert_eq!(body(&compound, None), whole);
}

#[test]
fn every_operation_is_essential_until_then() {
    let mut compound = Compound::in_session(&nobody(), "");
    compound.put_root().lookup(b"a");
    assert_eq!(compound.essential(), 2);
    compound.then().get_handle().save();
    assert_eq!(compound.essential(), 2);
}
