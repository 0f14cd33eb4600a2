"""The page of `launch.attack`, from synthetic records."""

import numpy as np
import pytest

from launch import pages
from launch.pages import _page
from launch.pages import attack as page_of_attack
from tests.launch.pages import reading
from tests.launch.pages.synthetic import attack, certify, figures, rows, save_clean, save_images, save_run, write


@pytest.fixture
def run(tmp_path):
    records = [
        attack(),
        attack("fgsm:epsilon=0.01", successes=0) | {"zero_gradient_share": 0.75},
        certify(),
        attack("jsma", "all", successes=97, l0=5.0),
        certify("l2", proved=0, attacked=0),
    ]
    save_run(tmp_path, "attack", records)
    save_clean(tmp_path)
    save_images(tmp_path, "0_pgd", targeted=False)
    save_images(tmp_path, "1_fgsm", targeted=False, success=False)
    save_images(tmp_path, "3_jsma", targeted=True)
    labels = np.arange(4)
    linf = {"proved": np.array([0.01, 0.0, 0.02, 0.03]), "attacked": np.array([0.05, 0.04, np.inf, 0.06])}
    np.savez(tmp_path / "images" / "certify_linf.npz", **linf, labels=labels)
    l2 = {"proved": np.zeros(4), "attacked": np.full(4, np.inf)}
    np.savez(tmp_path / "images" / "certify_l2.npz", **l2, labels=labels)
    return tmp_path


def test_page_has_attacks_cases_proofs_and_examples(run):
    page = write(run)
    attacks = page.sections["attacks"]
    assert attacks.column("attack") == ["pgd\nepsilon=0.3", "fgsm\nepsilon=0.01", "jsma"]
    assert attacks.column("targets") == ["untargeted", "untargeted", "all targets"]
    assert attacks.column("success")[:2] == ["90.0 %\n82.6 to 94.5\nn = 100", "0.0 %\n0.0 to 3.7\nn = 100"]
    assert attacks.column("L2") == ["1.5\nmedian 1.35\nworst 3", "", "1.5\nmedian 1.35\nworst 3"]
    assert attacks.column("zero gradients") == ["", "75.0 %", ""]
    # Where a pixel is one value, both counts are the same; without a lower precision, nothing is claimed.
    assert not {"L0, values", "claimed"} & set(attacks.rows[0])
    rate = "97.0 %\n91.5 to 99.0\nn = 100"
    assert page.sections["best-average-and-worst-case"].rows == [
        ["attack", "case", "success", "L0, pixels", "L2", "Linf"],
        ["jsma", "best", rate, "2.5", "0.75", "0.15"],
        ["jsma", "average", rate, "5", "1.5", "0.3"],
        ["jsma", "worst", rate, "10", "3", "0.6"],
    ]
    proofs = page.sections["certified-distances"]
    assert proofs.column("proved") == ["92.0 %\n85.0 to 95.9\nn = 100", "0.0 %\n0.0 to 3.7\nn = 100"]
    assert proofs.column("violations") == ["0", "0"]
    assert proofs.figures == ["certify_linf"]
    assert page.sections["examples"].figures == ["gallery_0_pgd", "gallery_1_fgsm", "gallery_3_jsma"]
    assert figures(run) == {"certify_linf", *page.sections["examples"].figures}


def test_csv_has_no_seconds(run):
    write(run)
    pgd, fgsm, linf, jsma, _ = rows(run)
    assert not any("seconds" in column for column in pgd)
    assert (pgd["success"], pgd["successes"], pgd["l2_worst"]) == ("0.900000", "90", "3.000000")
    assert (fgsm["success"], fgsm["l2_mean"]) == ("0.000000", "")
    assert (linf["measure"], linf["mean_proved"], linf["success"]) == ("certify", "0.012300", "")
    assert (jsma["worst_l0_pixels"], pgd["worst_l0_pixels"]) == ("10.000000", "")


def test_table_is_that_of_the_page(run):
    header, pgd, *_ = reading.markdown(pages.table(run))
    assert header[:5] == ["attack", "targets", "success", "after 8-bit rounding", "L0, pixels"]
    assert pgd[:4] == ["pgd (epsilon=0.3)", "untargeted", "90.0 % (82.6 to 94.5, n = 100)", "90.0 %"]


def test_columns_appear_where_they_tell_something(tmp_path):
    low = attack("pgd:forward=bfloat16", successes=80) | {"forward": "bfloat16", "claimed": 0.95}
    save_run(tmp_path, "attack", [attack(rounded=10) | {"l0_values_mean": 60.0, "l0_values_worst": 120.0}, low])
    attacks = write(tmp_path).sections["attacks"]
    assert attacks.column("claimed") == ["", "95.0 %\nbfloat16"]
    assert attacks.column("after 8-bit rounding") == ["10.0 %", "80.0 %"]
    assert attacks.column("L0, values")[0] == "60\nmedian 18\nworst 120"


def test_newest_proof_of_a_norm_counts(tmp_path):
    save_run(tmp_path, "attack", [attack(), certify(violations=0), certify(violations=3)])
    assert write(tmp_path).sections["certified-distances"].column("violations") == ["3"]


def test_attack_without_correctly_classified_images_has_no_rate(tmp_path):
    save_run(tmp_path, "attack", [attack(n=0, successes=0)])
    save_clean(tmp_path, size=2, wrong=(0, 1))
    save_images(tmp_path, "0_pgd", targeted=False)
    page = write(tmp_path)
    assert "success" not in page.sections["attacks"].rows[0]
    assert "examples" not in page.sections


def test_stopped_run_without_its_images_keeps_its_tables(run):
    write(run)
    (run / "images" / "clean.npz").unlink()
    (run / "images" / "certify_linf.npz").unlink()
    page = write(run)
    assert len(page.sections["certified-distances"].rows) == 3
    assert "examples" not in page.sections
    assert "certify_linf" not in figures(run)


def test_single_color_image_is_shown(tmp_path):
    save_run(tmp_path, "attack", [attack("jsma", "all", successes=1, n=1), certify(proved=1, attacked=1, n=1)])
    save_clean(tmp_path, size=1, shape=(5, 4, 3), wrong=())
    save_images(tmp_path, "0_jsma", targeted=True)
    np.savez(tmp_path / "images" / "certify_linf.npz", proved=[0.1], attacked=[0.2], labels=[0])
    page = write(tmp_path)
    assert (page.sections["certified-distances"].figures, page.sections["examples"].figures) == (
        ["certify_linf"], ["gallery_0_jsma"]
    )  # fmt: skip


def test_proofs_stand_in_order_with_what_was_found(run):
    proofs = page_of_attack.sections(_page.Run.read(run))[2].figures
    figure = proofs["certify_linf"][0]
    assert figure is not None
    (axes,) = figure.axes
    assert (axes.get_yscale(), axes.get_ylabel()) == ("log", "Linf distance")
    proved, found = (np.asarray(line.get_ydata()) for line in axes.lines)
    np.testing.assert_allclose(proved, [np.nan, 0.01, 0.02, 0.03])
    np.testing.assert_allclose(found, [0.04, 0.05, np.nan, 0.06])
    # Nothing was proved or found in L2.
    assert proofs["certify_l2"][0] is None
