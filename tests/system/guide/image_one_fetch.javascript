// 图生图 - 单张参考图
const response = await fetch("http://localhost:8081/user/ai/tasks/submit", {
method: "POST",
headers: {
"Content-Type": "application/json",
"Authorization": `Bearer ${YOUR_JWT_TOKEN}`
},
body: JSON.stringify({
modelName: "sc_soraimg_img2img_1x1",
prompt: "将人物转换为油画风格,色彩浓郁,笔触明显",
imageUrl: "https://oss-1818ai-user-img.oss-cn-hangzhou.aliyuncs.com/portrait.jpg"
})
});
const result = await response.json();
console.log("任务编号:", result.data.taskNo);
