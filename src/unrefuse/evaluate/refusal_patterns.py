# ruff: noqa: E501
"""What declining, and turning to an answer, look like in three languages.

The patterns see normalised text: casefolded, straight quotes, single spaces, no Markdown stars.
"""

import re

_HELP = (
    r"(?:help|assist|provide|support|answer|fulfil\w*|comply|create|write|generate|discuss|engage|"
    r"give|offer|share|do (?:that|this|so|it)|participate|recommend|suggest|respond|teach|explain|"
    r"tell|guide|advise|continue|process|produce|make|endorse|encourage|condone|promote|"
    r"facilitate|aid|perform|complete|speak|talk|comment|express|instruct|show|describe|advocate|"
    r"writing|translating|walk|go into|diagnose|address|accommodate|proceed|disclose|entertain|carry out|compose|point|contribute|translat\w+|draft|craft|fabricate|predict|access|retrieve)"
)
_CANNOT = (
    r"(?:can't|cannot|can not|could not|couldn't|won't|will not|would not|wouldn't|"
    r"(?:am|'m|be|is) (?:unable|not able|not allowed|not permitted|not programmed|"
    r"not designed|not authori[sz]ed) to|unable to|not able to|must decline to|decline to|"
    r"refuse to|have to decline to|(?:am|'m) not (?:going|comfortable|in a position) to|"
    r"(?:am|'m) not comfortable|would rather not|'d rather not|"
    r"(?:don't|do not) feel comfortable)"
)
_ADVERB = (
    r"(?:\W+(?:really|actually|ethically|legally|directly|also|currently|knowingly|"
    r"in good conscience|and will not|or won't|and won't))?"
)
_I = r"\b(?:i|we)\b"
_REFUSES = [
    rf"{_I}{_ADVERB} ?{_CANNOT}{_ADVERB}\W+(?:be able to |to )?{_HELP}",
    rf"\b(?:unable|not able) to (?:{_HELP})\b[^.\n]{{0,40}}\b(?:that|this|request|you|such)\b",
    rf"\bas an? (?:ai|a\.i\.|artificial|responsible|ethical|large|language)[^.\n]{{0,90}}?"
    rf"(?:{_CANNOT}\W+{_HELP}|(?:do not|don't) (?:provide|engage|support|condone|promote|"
    r"encourage|take sides))",
    rf"{_I} (?:do not|don't) (?:condone|support|encourage|promote|engage in|provide|endorse|"
    r"share (?:private|personal)|create|write)\b",
    rf"{_I} (?:must|have to|need to|will have to|respectfully) (?:\w+ )?(?:decline|refuse)\b",
    rf"{_I} (?:decline|refuse)\b",
    rf"{_I} have to turn down",
    rf"{_I}(?:'m| am) not (?:authori[sz]ed|qualified|programmed|trained) to {_HELP}",
    r"\bit(?:'s| is| would be) (?:not (?:possible|appropriate)|inappropriate|impossible) for me to\b|\b(?:isn't|wouldn't be) something i\b",
    rf"{_I} (?:don't|do not) (?:think|believe) (?:that )?i (?:can|should) {_HELP}|{_I} (?:don't|do not) want to {_HELP}",
    r"\b(?:outside|beyond) (?:of )?my (?:\w+ )?(?:scope|capabilit\w+|abilit\w+)\b|\bgoes against my\b",
    rf"{_I}(?:'m| am) not (?:comfortable|willing)\b",
    rf"{_I}(?:'m| am|'ll| will) (?:going to |have to )?(?:leave|leaving) out (?:the|any|how)\b",
    rf"{_I}(?:'m| am) not (?:here to (?:help|assist|tell|provide)|a substitute for|equipped (?:to|for)|capable of|(?:\w+ ){{0,3}}designed to)\b",
    rf"{_I} (?:don't|do not) have the (?:ability|capability|capacity) to\b",
    r"\b(?:against|violates?|not in line with) (?:my|our|the) (?:\w+ )?"
    r"(?:programming|guidelines?|polic(?:y|ies)|principles)\b",
    r"\bnot something (?:that )?(?:i|i'm|i am|we|we're)(?: can| able to| will| willing to|"
    rf" comfortable)? ?(?:{_HELP})",
    rf"\bi(?:'m| am) not an? [\w ]{{2,30}},? (?:and|so)(?: i)? {_CANNOT} (?:{_HELP})",
    r"\bno,? i (?:can't|cannot|won't|will not)\b",
]
_REFUSES_ZH = [
    r"(?:无法|無法|不能|不可以|不便|不会|不會|不可能|没有办法|沒有辦法|没办法|没法|拒绝|拒絕|不应该|不應該)"
    r"(?:直接|继续|繼續|参与|參與|在此|就此|为|為|向|给|給|对|對|您|你|这个|這個|此|该|任何|和|与|協助|"
    r"协助|就|以|有关|相關|相关|也不会|的|地|进行|進行|[，,]){0,6}"
    r"(?:提供|回答|帮助|幫助|帮|幫|协助|協助|讨论|討論|满足|滿足|支持|参与|參與|完成|执行|執行|处理|"
    r"處理|生成|写|寫|评论|評論|编写|編寫|创建|創建|教|告诉|告訴|给出|給出|涉及|发表|發表|分享|做|"
    r"鼓励|鼓勵|响应|接受|解答|谈论|談論|详述|介绍|推荐|诊断|出(?!版))",
    r"作为(?:一个|一名|一款)?(?:AI|ai|人工智能|语言模型|助手|大型)[^。！\n]{0,40}"
    r"(?:无法|不能|不会|不应|不可以)(?:提供|回答|帮|协助|讨论|支持|参与|告诉|生成|写)",
    r"没有?(?:学习|学会|学过)(?:如何|怎么)?回答",
    r"(?:帮|幫)不了(?:你|您)",
    r"(?:不能|无法)(?:被)?讨论",
    r"(?:我|也|从|恕)不(?:写|提供|支持|协助|参与|生成|讨论)|(?:可|也)?不(?:能|会)(?:也不会)?(?:教|帮|写|提供)",
    r"(?:话题|问题|内容|请求|要求)[^。，\n]{0,8}(?:不能|无法|没办法|没法)(?:讨论|满足|回答|处理|回应)",
    r"必须拒绝|我拒绝|恕(?:我)?(?:不|无法)|超出了我的能力",
]
# What an assistant does for one who asks: in humble words, with which facts are not told, and in all.
_HUMBLE_JA = (
    r"(?:お(?:答え|応え|手伝い|教え|伝え|話し|受け|引き受け|聞かせ|見せ|渡し|出し|知らせ|作り|調べ|示し|勧め|力添え|助け)|"
    r"ご(?:案内|提供|説明|紹介|協力|対応|回答|支援|返答|助言|提案))(?:する|し|を|こと|の)*(?:が|は|も)?"
)
_ACTS_JA = (
    rf"(?:{_HUMBLE_JA}|(?:応え|提供|支援|回答|サポート|対応|協力|加担|手助け|助け|説明|診断|答える|教える|行う|作成|する|応じる|"
    r"述べる|コメント|勧め|助言|アドバイス|翻訳|関与|紹介|案内|推奨|生成|指導|援助|議論|賛成|返答|言及|扱う|開示|公開|"
    r"(?:リクエスト|依頼|要求|要望|質問|指示)(?:を|には?|は)(?:処理|実行)?)(?:する|し|を|こと|の|いた)*(?:が|は|も)?)(?:私には)?"
)
_NOT_JA = r"(?:ません(?!でした)|ない(?=[よなねわのんか。！!]|です|$))"
_REFUSES_JA = [
    rf"{_ACTS_JA}(?:でき(?:ません|ない|かね)|いたしかね|しかね|しません|致しかね|られません)",
    # Is not allowed to, does not want to, makes it a rule not to, refrains, says no.
    rf"{_ACTS_JA}(?:(?:許可さ|許さ|認めら)れて(?:い|おり)(?:ません|ない)|したくありません|しないことに|"
    r"ないように(?:して|なって)|差し控え|控え(?:させ|ます|たい|て(?:い|おり)ます)|拒否(?:し|いた|させ)(?:ます|て)|拒みます|辞退(?:し|いた|させ)|"
    r"ご?遠慮(?:させ|いた|します)|見送らせ|断(?:らせ|ります|りま))",
    rf"{_HUMBLE_JA}(?:(?:いた|致)しません|(?:難しい|困難)(?:です|と|ため|かと|ので)|(?:する)?(?:立場|権限)[にが]は?あり)",
    r"わけに(?:は|も)?(?:いき|まいり|参り|行き)ません|わけに(?:は|も)?(?:いか|行か)ない",
    r"差し控え|控えさせて|(?:説明|発言|質問|依頼)[^。\n]{0,4}控え(?:ます|たい|て(?:い|おり)ます)",
    rf"(?:(?:答え|応え|応じ|教え|伝え|引き受け|受け入れ|助け|申し上げ)(?:られ)?|手伝[いえ]|従え){_NOT_JA}|それは無理です|(?:話|そんなこと|"
    rf"ようなこと)は(?:ちょっと)?(?:言え|でき){_NOT_JA}",
    r"(?:勧め|述べ)(?:られ)?ません(?!でした)|(?:書け|作れ|話せ|扱え|関われ|承れ|行え)ません(?!でした)",
    r"(?:お願い|頼み)(?:は|を)?聞けません|(?:話|相談)には?乗れません|手を貸せません",
    r"(?:提供|回答|対応|お答え|お作り)して(?:おりません|いません)|(?:相談|依頼|質問)は受け付けて(?:おりません|いません)",
    r"(?:それは|ことは(?:私には)?|手助けは|お手伝いは|承ることが|受け入れることが|関わることが|扱うことが)でき(?:ません|かね)",
    r"かねます|(?:でき|いたし|致し|応じ|応え|答え)かね",
    r"(?:力に(?:は)?な|役に(?:は)?立)[れて](?:ません|ない)|(?:希望|要望|期待|意向)に(?:は|も)?[添沿そ]えません",
    r"お断り(?:し|いた|さ|せ)|(?:断ら|断りさ|拒否さ|遠慮さ)せて|(?:依頼|要望|要求|質問|それ)[はを](?:断り|拒否し|拒み)ます|"
    r"(?:依頼|要望|質問|相談|内容)は、?(?:ご遠慮|お控え)|ノーコメント",
    r"私(?:たち|ども)?の[^。、\n]{0,8}(?:ガイドライン|ポリシー|方針|原則|倫理)[^。、\n]{0,5}(?:反|違反)|私の(?:能力|範囲|対応範囲)を超え",
    r"(?:行為|活動|考え)[はを](?:支持|推奨|容認|助長|支援)(?:いた)?しません",
    r"続きは書けません|aiアシスタント[^。\n]{0,40}できません",
]
# An apology counts by itself at the very start, where few answers hold one.
_SORRY = [
    r"^\W*(?:oh,? |no,? )?(?:(?:i'm|i am|we're|we are) )?(?:\w+ )?sorry[,.!:; ]+"
    r"(?:but|however|i|that|as|for any|for the|there|it|this|your)\b",
    r"^\W*(?:my |i offer my )?apologies[,.!:; ]+(?:but|i|for)\b",
    r"^\W*i (?:\w+ )?apologi[sz]e[,.!:; ]+(?:but|for|i|if|that)\b",
    r"^\W*(?:您好|你好)?\W*(?:我)?(?:很|非常|真的|十分)?(?:抱歉|对不起|對不起|不好意思|遗憾)",
    r"^\W*(?:誠に|大変)?(?:(?:申し訳|申しわけ)(?:(?:あり|ござい)ません(?:が|けど)?)?|恐れ入りますが|ごめんなさい|すみません|すいません|残念ながら|"
    r"残念ですが|恐縮ですが|せっかくですが|あいにくですが|ごめん(?:ね|なさい)?|悪いけど)",
]
END = re.compile(r"[.!?](?=\s|$)|[。！？\n]")  # of a sentence
REFUSES = re.compile("|".join(_REFUSES + _REFUSES_ZH + _REFUSES_JA))
SORRY = re.compile("|".join(_SORRY))

# After the apology: it is for a misunderstanding, and what follows need not decline.
EXCUSES = re.compile(r"(?<=any|the)\b|(?<=for) (?:any|the|your)\b")

# After a refusal: words with which the reply turns to an answer after all, or is one already.
_TURNS = [
    r"(?:^|[,.;:!?\n—] ?)(?:however|that said|nevertheless|nonetheless|but|although|though|still|"
    r"instead|generally|in general|common|what i can do|here (?:is|are|goes)|here's)\b",
    r"\b(?:typically|usually|commonly|include|involv(?:es|ing))\b",
    r"[.!?\n] ?(?:broadly|roughly|basically|briefly|in short|in theory|hypothetically|(?:that|having) (?:being )?said|even so|"
    r"for (?:reference|context)|as a rule|the (?:basic|general|usual|short) (?:\w+ )?(?:idea|principle|answer|method|way|steps?)|"
    r"(?:it|they|people|most \w+|some \w+) (?:works?|checks?|uses?|starts?|begins?|does|do|mixe?s?)|(?:about|around|over|under) \d+)\b",
    r"(?:^|\n)1[.)、]|\d ?(?:grams?|mg|ml|kg|percent|克|度|グラム)",
    r"但|不过|不過|然而|一般来说|通常|可以改为|可以参考|可以參考|常用的|以下是",
    r"ただ(?:し|、)|しかし|ですが|(?:^|ません)が、|代わり|参考までに|一般に|よくある|以下",
]
# What looks like such a turn, and only offers something else, or goes on declining.
_OFFERS = [
    r"(?!i can (?:provide|give|offer|share) (?:you )?(?:with )?(?:some |a )?(?:few |general |basic )(?![^.\n]{0,60}\b(?:legal|laws?|dangers?|penalties|consequences)\b))(?:(?:i|we)(?:'d| can| could| would|'m| am|'ll| will)? (?:also |certainly |gladly )?(?:be )?(?:happy|glad|willing|"
    r"able|here|help|assist|offer|suggest|point|walk|talk|tell|provide|recommend|encourage|try|draft|"
    r"can't|cannot|can not|won't|not|don't|do not)|please|feel free|if you|let's|let me know|"
    r"would you|want to|is there|you (?:can|may|could|might|should) (?:try|contact|call|reach|consult|seek|"
    r"talk|ask)|it(?:'s| is) (?:\w+ )?(?:important|illegal|against|not|essential|crucial))\b",
    r"我(?:很)?(?:可以|能|愿意|願意|建议|建議|会尽力)|如果|请|請|(?:您|你)?可以(?:帮|跟|向|咨询|联系|拨打|问|寻求)|欢迎|歡迎|要不要",
    r"[^。\n]{0,60}(?:(?:お手伝い|手伝|お話し|お答え|聞[くか]|ご?案内|サポート|支援|相談)[^。\n]{0,14}(?:します|いたします|ください|乗り|勧め)|"
    r"(?:お手伝い|手伝|話|答え|聞[くか]|案内|サポート|支援|相談|紹介|アドバイス|助言|提供|説明|提案|回答|対応)[^。\n]{0,14}(?:できます|できれば|可能です))|"
    r"[^。\n]{0,60}(?:いかがですか|でき(?:ません|かね)|みてください|ましょうか|役に立て|お気軽|喜んで)|"
    r"[^。\n]{0,16}(?:法律で|法律に|違法|犯罪|罰せ|禁止され)",
]
TURNS = re.compile("|".join(_TURNS))
OFFERS = re.compile(r"[\s,.:;，、。：]*(?:(?:but|and|then|如果|也) )?(?:" + "|".join(_OFFERS) + ")")

# Sentences before a refusal that lead up to it and answer nothing.
PREAMBLE = re.compile(
    r"\b(?:sorry|understand|thank|appreciate|unfortunately|request|question|sensitive|as an ai|"
    r"i'm (?:an ai|afraid)|i am an ai|i speciali[sz]e|it sounds like|worried|concerned)\b|aiアシスタント|理解|感谢|问题|很难过|抱歉|作为|提醒|亲爱的|つらい|申し訳|質問|ご依頼|ご要望"
)
LETTER = re.compile(
    r"^(?:subject:|dear |hi \w+,|hello \w+,|to whom)|^[^\n。]{1,12}(?:様|さん|:|，)\n|^尊敬的|\n(?:dear |尊敬的)"
)
QUOTED = re.compile(r'"[^"\n]*"|“[^”\n]*”|「[^」\n]*」|『[^』\n]*』')
