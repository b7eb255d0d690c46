"""Where a link may lead: a table of links, and laws of addresses."""

from __future__ import annotations

import contextlib
import ipaddress
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.fetch.outcomes import Outcome
from pipelines.fetch.policy import FetchSettings, RefusedError, check_addresses, check_url

SETTINGS = FetchSettings(host_map={"emoji.test": "127.0.0.1:9"}, allow=("127.0.0.1:8080",))

REFUSED = [
    ("file:///etc/passwd", "refused_scheme"),
    ("ftp://example.com/a.png", "refused_scheme"),
    ("data:image/png;base64,AAAA", "refused_scheme"),
    ("gopher://example.com/", "refused_scheme"),
    ("javascript:alert(1)", "refused_scheme"),
    ("//example.com/a.png", "refused_scheme"),
    ("example.com/a.png", "refused_scheme"),
    ("", "refused_scheme"),
    ("http:example.com", "refused_url"),
    ("http:///a.png", "refused_url"),
    ("http://user:secret@example.com/", "refused_url"),
    ("http://127.0.0.1:8080@example.com/", "refused_url"),
    ("http://@127.0.0.1/", "refused_url"),
    ("http://example.com\\@127.0.0.1/", "refused_url"),
    ("http://example.com/a\r\nHost: 127.0.0.1", "refused_url"),
    ("http://example.com/a b.png", "refused_url"),
    ("http://exa\x00mple.com/", "refused_url"),
    ("http://example.com/\x7f", "refused_url"),
    ("http://2130706433/", "refused_url"),
    ("http://017700000001/", "refused_url"),
    ("http://0x7f000001/", "refused_url"),
    ("http://0x7f.0.0.1/", "refused_url"),
    ("http://0177.0.0.1/", "refused_url"),
    ("http://127.1/", "refused_url"),
    ("http://127.0.1/", "refused_url"),
    ("http://127.0.0.1./", "refused_url"),
    ("http://127.0.0.01/", "refused_url"),
    ("http://example..com/", "refused_url"),
    ("http://127%2e0%2e0%2e1/", "refused_url"),
    ("http://[2606:4700::1%25eth0]/", "refused_url"),
    ("http://\u2460\u2461\u2466.0.0.1/", "refused_url"),
    ("http://example.com/" + "a" * 2048, "refused_url"),
    ("http://example.com/\ud800", "refused_url"),
    ("http://example.com:0x50/", "refused_url"),
    ("http://example.com:99999/", "refused_url"),
    ("http://example.com:22/", "refused_port"),
    ("http://example.com:443/", "refused_port"),
    ("https://example.com:80/", "refused_port"),
    ("http://127.0.0.1:8081/", "refused_port"),
    ("http://emoji.test:9/", "refused_port"),
    ("http://127.0.0.1/", "refused_address"),
    ("http://127.0.0.1:80/", "refused_address"),
    ("http://127.8.9.10/", "refused_address"),
    ("http://0.0.0.0/", "refused_address"),
    ("http://10.1.2.3/", "refused_address"),
    ("http://100.64.0.1/", "refused_address"),
    ("http://169.254.169.254/latest/meta-data/", "refused_address"),
    ("http://172.31.255.255/", "refused_address"),
    ("http://192.168.1.1/", "refused_address"),
    ("http://192.0.0.8/", "refused_address"),
    ("http://198.18.0.1/", "refused_address"),
    ("http://224.0.0.1/", "refused_address"),
    ("http://255.255.255.255/", "refused_address"),
    ("http://127\u30020\u30020\u30021/", "refused_url"),
    ("http://[::]/", "refused_address"),
    ("http://[::1]/", "refused_address"),
    ("http://[::7f00:1]/", "refused_address"),
    ("http://[::ffff:127.0.0.1]/", "refused_address"),
    ("http://[::ffff:a9fe:a9fe]/", "refused_address"),
    ("http://[64:ff9b::a9fe:a9fe]/", "refused_address"),
    ("http://[64:ff9b:1::1]/", "refused_address"),
    ("http://[2002:a9fe:a9fe::1]/", "refused_address"),
    ("http://[2001:0:7f00:1::1]/", "refused_address"),
    ("http://[2001:0:808:808::80ff:fffe]/", "refused_address"),
    ("http://[2001:db8::1]/", "refused_address"),
    ("http://[2001:40::]/", "refused_address"),
    ("http://[fe80::1]/", "refused_address"),
    ("http://[fc00::1]/", "refused_address"),
    ("http://[fec0::1]/", "refused_address"),
    ("http://[ff02::1]/", "refused_address"),
]


@pytest.mark.parametrize(("url", "outcome"), REFUSED)
def test_a_link_to_where_none_may_lead_is_refused_with_its_reason(url, outcome):
    with pytest.raises(RefusedError) as refusal:
        check_url(url, SETTINGS)
    assert refusal.value.outcome == outcome
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    ("url", "normal", "host", "port"),
    [
        ("HTTP://Example.COM", "http://example.com/", "example.com", 80),
        ("https://example.com:443/a.png#x", "https://example.com:443/a.png", "example.com", 443),
        ("http://example.com/ä ö".replace(" ", ""), "http://example.com/%C3%A4%C3%B6", None, 80),
        ("http://bücher.example/", "http://xn--bcher-kva.example/", "xn--bcher-kva.example", 80),
        ("http://8.8.8.8/a?b=c", "http://8.8.8.8/a?b=c", "8.8.8.8", 80),
        ("http://[2606:4700::1]/", "http://[2606:4700::1]/", "2606:4700::1", 80),
        ("http://a_b.example/", "http://a_b.example/", "a_b.example", 80),
    ],
)
def test_a_public_link_passes_in_its_normal_form(url, normal, host, port):
    target = check_url(url, SETTINGS)
    assert (target.url, target.host, target.port) == (normal, host or "example.com", port)
    assert target.fixed is None


def test_hosts_of_this_machine_are_fetched_where_the_settings_say():
    assert check_url("http://emoji.test/a.png", SETTINGS).fixed == ("127.0.0.1", 9)
    assert check_url("http://emoji.test/a.png", SETTINGS).url == "http://emoji.test/a.png"
    assert check_url("http://127.0.0.1:8080/", SETTINGS).fixed == ("127.0.0.1", 8080)


def test_one_private_address_among_public_ones_refuses_the_name():
    assert check_addresses(["8.8.8.8", "1.1.1.1", "8.8.8.8"]) == ["8.8.8.8", "1.1.1.1"]
    with pytest.raises(RefusedError) as refusal:
        check_addresses(["8.8.8.8", "10.0.0.1"])
    assert refusal.value.outcome is Outcome.REFUSED_ADDRESS


@given(st.ip_addresses(v=4))
def test_an_address_inside_an_ipv6_address_is_judged_like_itself(inner):
    def passes(address):
        try:
            return check_addresses([str(address)]) == [str(address)]
        except RefusedError:
            return False

    number = int(inner)
    mapped = ipaddress.IPv6Address((0xFFFF << 32) | number)
    nat64 = ipaddress.IPv6Address((0x64FF9B << 96) | number)
    six_to_four = ipaddress.IPv6Address((0x2002 << 112) | (number << 80) | 1)
    assert passes(inner) == passes(mapped) == passes(nat64) == passes(six_to_four)


@given(st.ip_addresses())
def test_what_the_standard_library_calls_private_never_passes(address):
    if address.is_private or address.is_multicast or address.is_reserved or address.is_loopback:
        wrapped = ipaddress.IPv6Network("64:ff9b::/96")
        if address.version == 6 and (address in wrapped or address.ipv4_mapped):
            return  # judged by what is inside, see above
        with pytest.raises(RefusedError):
            check_addresses([str(address)])


@given(st.text())
def test_any_text_passes_or_is_refused(text):
    for url in (text, f"http://{text}", f"http://example.com/{text}"):
        with contextlib.suppress(RefusedError):
            assert check_url(url, SETTINGS).url.isascii()


def test_settings_cross_to_workers_and_check_themselves():
    assert pickle.loads(pickle.dumps(SETTINGS)) == SETTINGS
    for wrong in ({"allow": ("localhost:1",)}, {"host_map": {"a": "127.0.0.1"}}, {"deadline": 0}):
        with pytest.raises(ValueError, match="settings"):
            FetchSettings(**wrong)
